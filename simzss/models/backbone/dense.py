"""Dense features from the last block of a CLIP-like ViT.

The last block of an image-text ViT serves its class token; its patch tokens lose their position. Three attentions in
its place keep the patches local, all without residual and without MLP: `value`, each token its own value (MaskCLIP,
Zhou et al. 2022); `self`, query-query attention (ClearCLIP, Lan et al. 2024); `proxy`, the similarities of another
model, whose features separate objects better (ProxyCLIP, Lan et al. 2024; Trident, Shi et al. 2024).
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

_CHUNK = 2**24
"""Elements of a similarity matrix in memory at a time: a whole photo of 2048 pixels has 4 * 10^8."""


def supports_dense(model: nn.Module) -> bool:
    """Tell whether the last block is timm's standard pre-norm block, as it is computed here."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential) or len(blocks) < 2 or type(blocks[-1]) is not Block:
        return False
    attention = blocks[-1].attn
    return type(attention) is Attention and getattr(attention, "gate", None) is None


def dense_last_block(block: Any, tokens: Tensor, mode: str) -> Tensor:
    """Compute the attention of the last block with the tokens' own similarity in place of query-key.

    Args:
        block: the last transformer block, of timm's standard pre-norm kind.
        tokens: (B, T, C) input of the block, prefix tokens included.
        mode: `value` (every token attends to itself) or `self` (softmax of query . query / sqrt(d)).

    Returns:
        (B, T, C) attention output after its projection; no residual, no MLP.
    """
    query, value = _query_value(block, tokens)
    if mode == "self":
        attention = block.attn
        query = attention.q_norm(query)
        value = F.scaled_dot_product_attention(query, query, value, scale=attention.scale)
    return _project(block, value.transpose(1, 2).flatten(2))


def proxy_last_block(
    block: Any, tokens: Tensor, prefix: int, grid: tuple[int, int], proxy: Tensor, beta: float, gamma: float
) -> Tensor:
    """Compute the attention of the last block with proxy features' similarity in place of query-key.

    Args:
        block: the last transformer block, of timm's standard pre-norm kind.
        tokens: (B, prefix + h * w, C) input of the block.
        prefix: tokens before the patches; they take no part.
        grid: h and w.
        proxy: (B, G, h', w') proxy features of the same images.
        beta: see `proxy_attention`.
        gamma: see `proxy_attention`.

    Returns:
        (B, h' * w', C) on the grid of the proxy features, to which values are interpolated.
    """
    _, value = _query_value(block, tokens)
    maps = value[:, :, prefix:].transpose(2, 3).flatten(1, 2).unflatten(2, grid).float()  # (B, C, h, w)
    if maps.shape[2:] != proxy.shape[2:]:
        maps = F.interpolate(maps, proxy.shape[2:], mode="bilinear")
    out = proxy_attention(proxy.flatten(2).mT, maps.flatten(2).mT, beta, gamma)
    return _project(block, out.to(tokens.dtype))


def proxy_attention(
    proxy: Tensor, values: Tensor, beta: float = 1.2, gamma: float = 3.0, elements: int = _CHUNK
) -> Tensor:
    """Average values over patches with similar proxy features (ProxyCLIP, equation 5; Trident, section 3.1).

    A = softmax((S - beta * mean(S)) * gamma) with S = cos(proxy, proxy), over those entries that are not below 0. A
    patch always attends to itself, so that no row is empty where all patches are alike.

    Args:
        proxy: (B, N, G) proxy features.
        values: (B, N, C).
        beta: similarities below this many times their mean do not count.
        gamma: inverse temperature.
        elements: of the similarity matrix in memory at a time.

    Returns:
        (B, N, C) float32.
    """
    with torch.autocast(proxy.device.type, enabled=False):  # a cosine has too few digits in bfloat16 for this
        unit, values = F.normalize(proxy.float(), dim=-1), values.float()
        # The mean of all cosines is the squared length of the mean unit vector.
        mean = unit.mean(dim=1).square().sum(dim=-1)[:, None, None]
        batch, count, _ = unit.shape
        step = max(1, elements // (batch * count))
        rows = []
        for start in range(0, count, step):
            scores = (unit[:, start : start + step] @ unit.mT - beta * mean) * gamma
            out = scores < 0
            out.diagonal(start, 1, 2).fill_(False)
            rows.append(scores.masked_fill_(out, -torch.inf).softmax(dim=-1) @ values)
        return torch.cat(rows, dim=1)


def _query_value(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and values (B, heads, T, d) of a block's tokens (B, T, C)."""
    attention = block.attn
    batch, length, _ = tokens.shape
    qkv = attention.qkv(block.norm1(tokens)).reshape(batch, length, 3, attention.num_heads, -1)
    query, _, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return query, value


def _project(block: Any, out: Tensor) -> Tensor:
    """Apply the block's output projection and layer scale."""
    attention = block.attn
    out = attention.proj(attention.norm(out) if hasattr(attention, "norm") else out)
    return block.ls1(out) if hasattr(block, "ls1") else out
