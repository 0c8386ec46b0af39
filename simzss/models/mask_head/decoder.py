"""From adapted features to masks: a pixel decoder, and queries that attend inside the masks they predict."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simzss.models.mask_head.layers import Attention, ChannelNorm, DepthwiseBlock, mlp, sine_positions

_KERNEL = 7


class PixelDecoder(nn.Module):
    """Features that masks are products with, finer than the backbone's cells.

    Args:
        width: d.
        upsample: cells along each side for one of the finest level; a power of two.
    """

    def __init__(self, width: int, upsample: int) -> None:
        super().__init__()
        self.enter = DepthwiseBlock(width, _KERNEL)
        self.doublings = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1), ChannelNorm(width), DepthwiseBlock(width, _KERNEL))
            for _ in range(upsample.bit_length() - 1)
        )
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, d, h, w) -> (B, d, upsample * h, upsample * w)."""
        maps = self.enter(maps)
        for double in self.doublings:
            maps = double(F.interpolate(maps, scale_factor=2.0, mode="bilinear"))
        return self.out(maps)


class QueryLayer(nn.Module):
    """Queries look at the features of one level, then at one another (Cheng et al. 2022, section 3.2).

    Args:
        width: d.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross, self.own = Attention(width, heads), Attention(width, heads)
        self.mix = mlp(width, 4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, queries: Tensor, places: Tensor, features: Tensor, positions: Tensor, allowed: Tensor | None
    ) -> Tensor:
        """One round.

        Args:
            queries: (B, Q, d).
            places: (Q, d), learned positions of the queries.
            features: (B, N, d) of the level.
            positions: (N, d) of its cells.
            allowed: (B, Q, N) bool, the cells that a query may look at; None for all.

        Returns:
            (B, Q, d).
        """
        first, second, third = self.norms
        queries = first(queries + self.cross(queries + places, features + positions, features, allowed))
        placed = queries + places
        queries = second(queries + self.own(placed, placed, queries))
        return third(queries + self.mix(queries))


class QueryDecoder(nn.Module):
    """Object queries with Multi-grained Masked Attention: by turns over the coarse and the fine features, each query
    inside the mask that it has predicted so far.

    Args:
        width: d.
        queries: Q.
        layers: rounds.
        heads: of the attention.
        levels: number of levels of features.
        masked: whether attention stays inside the masks; otherwise queries look everywhere.
    """  # fmt: skip

    def __init__(self, width: int, queries: int, layers: int, heads: int, levels: int, masked: bool) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.places = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.level = nn.Parameter(torch.zeros(levels, width))
        self.layers = nn.ModuleList(QueryLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.mask = mlp(width, width, width)
        self.masked = masked

    def forward(self, levels: Sequence[Tensor], pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Queries and their masks before the first round and after each.

        Args:
            levels: (B, d, h, w) each, coarse before fine.
            pixels: (B, d, H, W) of the pixel decoder.

        Returns:
            (queries (B, Q, d), mask logits (B, Q, H, W)) for each.
        """
        queries = self.content.expand(len(pixels), -1, -1)
        found = [self._predict(queries, pixels)]
        keys = [level.flatten(2).mT + own for level, own in zip(levels, self.level, strict=True)]
        positions = [sine_positions(level) for level in levels]
        for number, layer in enumerate(self.layers):
            turn = number % len(levels)
            allowed = inside(found[-1][1], levels[turn].shape[2:]) if self.masked else None
            queries = layer(queries, self.places, keys[turn], positions[turn], allowed)
            found.append(self._predict(queries, pixels))
        return found

    def _predict(self, queries: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.norm(queries)
        return queries, torch.einsum("bqd,bdhw->bqhw", self.mask(queries), pixels)


@torch.no_grad()
def inside(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Cells that lie inside masks.

    Args:
        masks: (B, Q, H, W) logits.
        size: h and w of the cells.

    Returns:
        (B, Q, h * w) bool, true where the mask is more likely than not; everywhere for a mask that is nowhere.
    """
    cells = F.interpolate(masks.float(), tuple(size), mode="bilinear", antialias=True).flatten(2) > 0
    return cells | ~cells.any(dim=2, keepdim=True)
