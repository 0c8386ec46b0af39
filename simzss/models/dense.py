"""Dense features from the last block of a CLIP-like ViT.

The last block of an image-text ViT serves its class token; its patch tokens lose their place. Keeping only the
attention, fed by a similarity of the patches among themselves, gives patches that mean what they show:
`value` is MaskCLIP (Zhou et al. 2022: each token keeps its own value), `self` is query-query attention as in
ClearCLIP (Lan et al. 2024), both without residual and without MLP.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def dense_last_block(block: Any, tokens: Tensor, mode: str) -> Tensor:
    """Attention part of the last block with the tokens' own similarity in place of query-key.

    Args:
        block: the last transformer block, of timm's standard pre-norm kind.
        tokens: (B, T, C) input of the block, prefix tokens included.
        mode: `value` (every token attends to itself) or `self` (softmax of query . query / sqrt(d)).

    Returns:
        (B, T, C) attention output after its projection; no residual, no MLP.
    """
    attention = block.attn
    batch, length, _ = tokens.shape
    qkv = attention.qkv(block.norm1(tokens)).reshape(batch, length, 3, attention.num_heads, -1)
    query, _, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, d)
    if mode == "self":
        query = attention.q_norm(query)
        value = F.scaled_dot_product_attention(query, query, value, scale=attention.scale)
    out = value.transpose(1, 2).reshape(batch, length, -1)
    out = attention.proj(attention.norm(out) if hasattr(attention, "norm") else out)
    return block.ls1(out) if hasattr(block, "ls1") else out
