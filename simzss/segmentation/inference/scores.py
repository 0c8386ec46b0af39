"""Scores of one image at any resolution: kept as small as the model made them, up-sampled tile by tile.

A field of K classes at full resolution is the largest tensor of an evaluation (171 classes at 2048 x 1024 pixels:
1.4 GB), and nearly all of it is thrown away by the arg-max. Bilinear interpolation, averaging over windows and the
interpolation back to the photo's size are all linear and separable, so that the scores of any tile are a product of
three small matrices. And as interpolation stays between the values it starts from, most classes cannot win anywhere
in a tile: they are left out before the product is taken, which changes no label.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from simzss.models.sam.sampling import centres

_TILE = 48  # pixels: a few patches wide, so that few classes are left in a tile and its scores stay in the cache
_TILE_ACCELERATOR = 512  # where starting a kernel costs more than its arithmetic
_SLACK = 1e-5  # cosines' rounding: a class this close to the best is not left out


class Rule(Protocol):
    """What makes labels of scores."""

    @property
    def prunable(self) -> bool:
        """Whether scores below the best one have no influence on the label."""

    def decide(self, scores: Tensor, rows: Tensor | None = None) -> Tensor:
        """Labels (…) int64 of scores (S, …), or of the given `rows` of them."""

    def logits(self, scores: Tensor) -> Tensor:
        """(K, …) float32 of scores (S, …); the largest one is the label."""


class ScoreMap:
    """Scores of the windows of one image.

    Args:
        scores: (W, S, h, w) of W windows of one size, or of the whole image (W = 1).
        places: top and left of each window in pixels of the resized image; None for the whole image.
        window: height and width of a window in pixels of the resized image.
        resized: height and width of the resized image.
        size: height and width that the scores are asked for.
    """

    def __init__(
        self,
        scores: Tensor,
        places: Sequence[tuple[int, int]] | None,
        window: tuple[int, int],
        resized: tuple[int, int],
        size: tuple[int, int],
    ) -> None:
        self.scores = scores.float()
        self.size = size
        grid = (scores.shape[-2], scores.shape[-1])
        if places is None:
            axes = [[interpolation(grid[axis], size[axis])] for axis in (0, 1)]
        else:
            axes = [
                _window_axes([place[axis] for place in places], window[axis], grid[axis], resized[axis], size[axis])
                for axis in (0, 1)
            ]
        self._support = [[matrix != 0 for matrix in axis] for axis in axes]
        self._down, self._across = ([matrix.to(self.scores) for matrix in axis] for axis in axes)

    def full(self) -> Tensor:
        """(S, H, W): all scores at full size."""
        height, width = self.size
        return self._combine(self._pieces(slice(0, height), slice(0, width)), slice(0, height), slice(0, width), None)

    def labels(self, rule: Rule, tile: int | None = None) -> Tensor:
        """(H, W) int64: what `rule` decides for every pixel, equal to its decision on `full()`.

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
                pieces = [(n, d, a) for n, (d, a) in enumerate(zip(down, spans, strict=True)) if d and a]
                rows = self._contenders(pieces) if rule.prunable else None
                out[row, column] = rule.decide(self._combine(pieces, row, column, rows), rows)
        return out

    def _contenders(self, pieces: "list[_Piece]") -> Tensor:
        """Rows of the scores that may be the best one somewhere in the tile that these pieces make."""
        cells = torch.cat([self.scores[n, :, d, a].flatten(1) for n, d, a in pieces], dim=1)
        best, sure = cells.amax(dim=1), cells.amin(dim=1).amax()
        return (best >= sure - _SLACK).nonzero()[:, 0]

    def _combine(self, pieces: "list[_Piece]", row: slice, column: slice, rows: Tensor | None) -> Tensor:
        """(S, r, c) scores of a tile."""
        total: Tensor | None = None
        for n, d, a in pieces:
            scores = self.scores[n, :, d, a]
            if rows is not None:
                scores = scores[rows]
            part = self._down[n][row, d] @ scores @ self._across[n][column, a].T
            total = part if total is None else total + part
        assert total is not None
        return total

    def _pieces(self, row: slice, column: slice) -> "list[_Piece]":
        spans = zip(self._spans(0, row), self._spans(1, column), strict=True)
        return [(n, d, a) for n, (d, a) in enumerate(spans) if d and a]

    def _spans(self, axis: int, part: slice) -> list[slice | None]:
        """For each window the cells that pixels `part` depend on; None where the window does not touch them."""
        found: list[slice | None] = []
        for support in self._support[axis]:
            cells = support[part].any(dim=0).nonzero()
            found.append(slice(int(cells[0]), int(cells[-1]) + 1) if len(cells) else None)
        return found


_Piece = tuple[int, slice, slice]  # window, its rows of cells, its columns of cells


def interpolation(length: int, target: int) -> Tensor:
    """(target, length) float64 matrix of bilinear interpolation along an axis, half-pixel centres (torch's
    `align_corners=False`)."""  # fmt: skip
    return bilinear_rows(centres(target, length), length)


def bilinear_rows(positions: Tensor, length: int) -> Tensor:
    """(n, length) float64 matrix that looks up n positions between the cells of an axis; see `centres` for what a
    position means. Those outside take the cell at the edge."""  # fmt: skip
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

    Windows stand in a grid of rows and columns, so that how many cover a pixel is a product of one count per axis.
    """
    count = torch.zeros(resized, dtype=torch.float64)
    for start in set(starts):
        count[start : start + window] += 1
    last, first = interpolation(resized, target) / count, interpolation(cells, window)
    return [last[:, start : start + window] @ first for start in starts]
