"""Scores of one image at any resolution: kept as small as the model made them, up-sampled tile by tile.

A field of K classes at full resolution is the largest tensor of an evaluation (171 classes at 2048 x 1024 pixels:
1.4 GB), and nearly all of it is thrown away by the argmax. Bilinear interpolation, averaging over windows and the
interpolation back to the photo's size are all linear and separable, so that the scores of any tile are a product of
three small matrices. And as interpolation stays between the values it starts from, most classes cannot win anywhere
in a tile: they are left out before the product is taken, which changes no label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simzss.models.sam.sampling import centres

_TILE = 48  # pixels: a few patches wide, so that few classes are left in a tile and its scores stay in the cache
_TILE_ACCELERATOR = 512  # where starting a kernel costs more than its arithmetic
_SLACK = 1e-5  # cosines' rounding: a class this close to the best is not left out


class Rule(Protocol):
    """Decision rule from scores to labels."""

    @property
    def prunable(self) -> bool:
        """Tell whether scores below the best one have no influence on the label."""

    def decide(self, scores: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return labels (…) int64 of scores (S, …), or of the given `rows` of them."""

    def logits(self, scores: Tensor) -> Tensor:
        """Return (K, …) float32 of scores (S, …); the largest one is the label."""


class ScoreMap:
    """Scores of the windows of one image, interpolated to a size.

    Args:
        scores: (W, S, h, w) of W windows of one shape, or of the whole image (W = 1).
        positions: top and left of each window in pixels of the resized image; None for the whole image.
        window: height and width of a window in pixels of the resized image.
        resized: height and width of the resized image.
        size: height and width of the result.
    """

    def __init__(
        self,
        scores: Tensor,
        positions: Sequence[tuple[int, int]] | None,
        window: tuple[int, int],
        resized: tuple[int, int],
        size: tuple[int, int],
    ) -> None:
        self.scores = scores.float()
        self.size = size
        grid = (scores.shape[-2], scores.shape[-1])
        if positions is None:
            axes = [[interpolation(grid[axis], size[axis])] for axis in (0, 1)]
        else:
            axes = [
                _window_axes([at[axis] for at in positions], window[axis], grid[axis], resized[axis], size[axis])
                for axis in (0, 1)
            ]
        self._support = [[matrix != 0 for matrix in axis] for axis in axes]
        self._down, self._across = ([matrix.to(self.scores) for matrix in axis] for axis in axes)

    def full(self) -> Tensor:
        """Return all scores (S, H, W)."""
        rows, columns = (slice(0, side) for side in self.size)
        pieces = _pieces(self._spans(0, rows), self._spans(1, columns))
        return self._combine(pieces, rows, columns, None)

    def labels(self, rule: Rule, tile: int | None = None) -> Tensor:
        """Apply `rule` to every pixel, tile by tile: (H, W) int64, equal to its decision on `full()`.

        Args:
            rule: see `Rule`.
            tile: side of a tile in pixels; one tile's scores are the most that is held at a time.
        """
        side = tile or (_TILE if self.scores.is_cpu else _TILE_ACCELERATOR)
        out = torch.empty(self.size, dtype=torch.long, device=self.scores.device)
        columns = [slice(left, min(left + side, self.size[1])) for left in range(0, self.size[1], side)]
        across = [self._spans(1, column) for column in columns]
        for top in range(0, self.size[0], side):
            row = slice(top, min(top + side, self.size[0]))
            down = self._spans(0, row)
            for column, spans in zip(columns, across, strict=True):
                pieces = _pieces(down, spans)
                rows = self._contenders(pieces) if rule.prunable else None
                out[row, column] = rule.decide(self._combine(pieces, row, column, rows), rows)
        return out

    def _contenders(self, pieces: "list[_Piece]") -> Tensor:
        """Rows of the scores that may be the best one somewhere in a tile."""
        cells = torch.cat([self.scores[n, :, d, a].flatten(1) for n, d, a in pieces], dim=1)
        best, sure = cells.amax(dim=1), cells.amin(dim=1).amax()
        return (best >= sure - _SLACK).nonzero()[:, 0]

    def _combine(self, pieces: "list[_Piece]", row: slice, column: slice, rows: Tensor | None) -> Tensor:
        """Scores (S, r, c) of a tile."""
        total: Tensor | None = None
        for n, d, a in pieces:
            scores = self.scores[n, :, d, a]
            if rows is not None:
                scores = scores[rows]
            part = self._down[n][row, d] @ scores @ self._across[n][column, a].T
            total = part if total is None else total + part
        assert total is not None
        return total

    def _spans(self, axis: int, part: slice) -> list[slice | None]:
        """For each window the cells that pixels `part` depend on; None where the window does not touch them."""
        found: list[slice | None] = []
        for support in self._support[axis]:
            cells = support[part].any(dim=0).nonzero()
            found.append(slice(int(cells[0]), int(cells[-1]) + 1) if len(cells) else None)
        return found


@dataclass(frozen=True)
class WindowScores:
    """Scores of the windows of one image, to be interpolated to any size; see `ScoreMap`."""

    scores: Tensor
    positions: Sequence[tuple[int, int]] | None
    window: tuple[int, int]
    resized: tuple[int, int]

    def at(self, size: tuple[int, int]) -> ScoreMap:
        """Return the scores at a size (height, width)."""
        return ScoreMap(self.scores, self.positions, self.window, self.resized, size)


_Piece = tuple[int, slice, slice]  # window, its rows of cells, its columns of cells


def _pieces(down: Sequence[slice | None], across: Sequence[slice | None]) -> list[_Piece]:
    return [(n, d, a) for n, (d, a) in enumerate(zip(down, across, strict=True)) if d and a]


def interpolation(length: int, target: int) -> Tensor:
    """Return the (target, length) float64 matrix of bilinear interpolation along an axis, half-pixel centres (torch's
    `align_corners=False`)."""
    return interpolation_rows(centres(target, length), length)


def interpolation_rows(positions: Tensor, length: int) -> Tensor:
    """Return the (n, length) float64 matrix that interpolates at n positions between the cells of an axis.

    See `centres` for the meaning of a position. Those outside take the cell at the edge.
    """
    at = positions.clamp(0, length - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=length - 1)
    matrix = torch.zeros(len(at), length, dtype=torch.float64)
    index = torch.arange(len(at))
    matrix[index, low] += 1 - (at - low)
    matrix[index, high] += at - low
    return matrix


def _window_axes(starts: list[int], window: int, cells: int, resized: int, target: int) -> list[Tensor]:
    """Per window the (target, cells) matrix along one axis: up to the window's pixels, the mean over the windows that
    cover a pixel of the resized image, and on to the target size.

    Windows form a grid, so that the number of those that cover a pixel is a product of one count per axis.
    """
    count = torch.zeros(resized, dtype=torch.float64)
    for start in set(starts):
        count[start : start + window] += 1
    last, first = interpolation(resized, target) / count, interpolation(cells, window)
    return [last[:, start : start + window] @ first for start in starts]
