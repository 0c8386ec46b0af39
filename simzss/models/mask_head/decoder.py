"""From adapted features to masks: a pixel decoder, and a transformer decoder with masked attention (Mask2Former)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simzss.models.mask_head.layers import Attention, DepthwiseBlock, LayerNorm2d, mlp, sine_positions

_KERNEL = 7


class PixelDecoder(nn.Module):
    """Per-pixel embeddings, finer than the backbone's cells; a mask is their product with a query's mask embedding.

    Args:
        width: d.
        upsample: cells along each side for one of the finest level; a power of two.
    """

    def __init__(self, width: int, upsample: int) -> None:
        super().__init__()
        self.enter = DepthwiseBlock(width, _KERNEL)
        self.doublings = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1), LayerNorm2d(width), DepthwiseBlock(width, _KERNEL))
            for _ in range(upsample.bit_length() - 1)
        )
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, d, h, w) to (B, d, upsample * h, upsample * w)."""
        maps = self.enter(maps)
        for double in self.doublings:
            maps = double(F.interpolate(maps, scale_factor=2.0, mode="bilinear"))
        return self.out(maps)


class DecoderLayer(nn.Module):
    """Masked cross-attention to the features of one level, self-attention, MLP (Cheng et al. 2022, section 3.2).

    Args:
        width: d.
        heads: number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross, self.own = Attention(width, heads), Attention(width, heads)
        self.mix = mlp(width, 4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, queries: Tensor, query_positions: Tensor, features: Tensor, positions: Tensor, allowed: Tensor | None
    ) -> Tensor:
        """Update the queries.

        Args:
            queries: (B, Q, d).
            query_positions: (Q, d), learned.
            features: (B, N, d) of the level.
            positions: (N, d) of its cells.
            allowed: (B, Q, N) bool, the cells that a query attends to; None for all.

        Returns:
            (B, Q, d).
        """
        first, second, third = self.norms
        attended = self.cross(queries + query_positions, features + positions, features, allowed)
        queries = first(queries + attended)
        placed = queries + query_positions
        queries = second(queries + self.own(placed, placed, queries))
        return third(queries + self.mix(queries))


class QueryDecoder(nn.Module):
    """Object queries with Multi-grained Masked Attention: layers take turns over the coarse and the fine features, and
    each query attends inside the mask that it has predicted so far.

    Args:
        width: d.
        queries: Q.
        layers: number of decoder layers.
        heads: number of attention heads.
        levels: number of feature levels.
        masked: attend inside the masks; otherwise everywhere.
    """  # fmt: skip

    def __init__(self, width: int, queries: int, layers: int, heads: int, levels: int, masked: bool) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.places = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.level = nn.Parameter(torch.zeros(levels, width))
        self.layers = nn.ModuleList(DecoderLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.mask = mlp(width, width, width)
        self.masked = masked

    def forward(self, levels: Sequence[Tensor], pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Predict queries and their masks before the first layer and after each.

        Args:
            levels: (B, d, h, w) each, coarse before fine.
            pixels: (B, d, H, W) of the pixel decoder.

        Returns:
            (queries (B, Q, d), mask logits (B, Q, H, W)) for each.
        """
        queries = self.content.expand(len(pixels), -1, -1)
        predictions = [self._predict(queries, pixels)]
        features = [level.flatten(2).mT + embedding for level, embedding in zip(levels, self.level, strict=True)]
        positions = [sine_positions(level) for level in levels]
        for number, layer in enumerate(self.layers):
            turn = number % len(levels)
            allowed = attention_mask(predictions[-1][1], levels[turn].shape[2:]) if self.masked else None
            queries = layer(queries, self.places, features[turn], positions[turn], allowed)
            predictions.append(self._predict(queries, pixels))
        return predictions

    def _predict(self, queries: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.norm(queries)
        return queries, torch.einsum("bqd,bdhw->bqhw", self.mask(queries), pixels)


@torch.no_grad()
def attention_mask(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Return the cells that lie inside masks.

    Args:
        masks: (B, Q, H, W) logits.
        size: h and w of the cells.

    Returns:
        (B, Q, h * w) bool, true where the mask is more likely than not; everywhere for an empty mask.
    """
    cells = F.interpolate(masks.float(), tuple(size), mode="bilinear", antialias=True).flatten(2) > 0
    return cells | ~cells.any(dim=2, keepdim=True)
