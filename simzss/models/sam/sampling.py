"""Bilinear samples of maps at fractional rows and columns."""

import torch
from torch import Tensor


def centres(count: int, extent: float) -> Tensor:
    """Return positions, in cells of a map, of `count` pixels of equal size that cover its first `extent` cells.

    A position of 0 is the centre of the first cell, and -0.5 its edge.

    Returns:
        (count,) float64 on the CPU.
    """
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (extent / count) - 0.5


def bilinear(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sample maps (..., h, w) at rows (H,) and columns (W,): (..., H, W).

    Positions outside take the value at the edge. There is no antialiasing: a smaller result skips cells.
    """
    # Columns first: the map has fewer rows than the result.
    return _along(_along(maps, columns, -1), rows, -2)


def _along(maps: Tensor, positions: Tensor, dim: int) -> Tensor:
    last = maps.shape[dim] - 1
    positions = positions.clamp(0, last)
    lower = positions.floor()
    share = (positions - lower).to(maps.dtype).to(maps.device)
    below = lower.long().to(maps.device)
    above = (below + 1).clamp(max=last)
    share = share if dim == -1 else share[:, None]
    return torch.lerp(maps.index_select(dim, below), maps.index_select(dim, above), share)
