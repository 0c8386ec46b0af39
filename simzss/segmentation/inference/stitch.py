"""Maps of overlapping windows averaged into one map of the whole image (Trident, Shi et al. 2024, section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from simzss.segmentation.inference.scores import interpolation_rows


class Stitch:
    """Running mean of window maps: only the map of the whole image is kept.

    A cell of the whole map is the mean over the windows that contain its centre, of their maps at that point: bilinear
    between cells, and the nearest cell's value at the rim of a window. Where the windows' cells coincide with those of
    the whole map, that is the plain mean of cells.

    Args:
        positions: top and left of each window in pixels of the image; windows form a grid.
        window: height and width of a window in pixels.
        image: height and width of the image in pixels.
    """

    def __init__(self, positions: Sequence[tuple[int, int]], window: tuple[int, int], image: tuple[int, int]) -> None:
        self._positions = positions
        self._window = window
        self._image = image
        self._total: Tensor | None = None
        self._axes: list[dict[int, tuple[slice, Tensor]]] = []

    def add(self, index: int, cells: Tensor) -> None:
        """Add the map (C, h, w) of window `index`; all windows' maps have one shape."""
        total = self._start(cells) if self._total is None else self._total
        (rows, down), (columns, across) = (
            axis[start] for axis, start in zip(self._axes, self._positions[index], strict=True)
        )
        total[:, rows, columns] += down @ cells.float() @ across.T

    def result(self) -> Tensor:
        """Return the whole map (C, H, W) float32, of cells as large as the windows' are."""
        assert self._total is not None, "no window was added"
        return self._total

    def _start(self, cells: Tensor) -> Tensor:
        sides = []
        for axis in (0, 1):
            count = cells.shape[1 + axis]
            side = max(1, round(self._image[axis] * count / self._window[axis]))
            starts = sorted({position[axis] for position in self._positions})
            weights = _weights(starts, self._window[axis], count, self._image[axis], side)
            spans = [(_span(matrix), matrix.to(cells.device, torch.float32)) for matrix in weights]
            self._axes.append({start: (span, m[span]) for start, (span, m) in zip(starts, spans, strict=True)})
            sides.append(side)
        self._total = torch.zeros(len(cells), *sides, device=cells.device)
        return self._total


def _weights(starts: Sequence[int], window: int, count: int, length: int, side: int) -> list[Tensor]:
    """Per window the (side, count) float64 matrix along one axis from its cells to those of the whole map."""
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) * (length / side)
    covered = torch.stack([(centres >= start) & (centres < start + window) for start in starts])
    found = []
    for start, inside in zip(starts, covered, strict=True):
        matrix = interpolation_rows((centres - start) * (count / window) - 0.5, count)
        found.append(matrix * (inside / covered.sum(dim=0))[:, None])
    return found


def _span(matrix: Tensor) -> slice:
    """Rows that are not zero: neighbours, as a window's cells are."""
    rows = matrix.any(dim=1).nonzero()
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)
