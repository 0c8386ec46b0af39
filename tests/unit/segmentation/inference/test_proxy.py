"""SAM's embedding as proxy features of windows."""

import itertools

import pytest
import torch

from simzss.models.sam.sam import SamEncoding
from simzss.segmentation.inference.proxy import window_proxy
from simzss.segmentation.inference.windows import cut
from tests.support.loops import sampled


def encoded(grid: tuple[int, int], cells: tuple[float, float]) -> SamEncoding:
    """An embedding of noise of an image that takes up so many cells of it, fractions included."""
    embedding = torch.randn(5, *grid, generator=torch.Generator().manual_seed(0))
    return SamEncoding(embedding, None, cells, embedding[None])


def by_loop(encoding: SamEncoding, position, window, size) -> torch.Tensor:
    """The embedding at the centre of every cell of a window, in float64."""
    shape = [max(1, round(window[axis] / size[axis] * encoding.cells[axis])) for axis in (0, 1)]
    out = torch.zeros(len(encoding.embedding), *shape, dtype=torch.float64)
    for row, column in itertools.product(*map(range, shape)):
        relative = [
            (position[axis] + (number + 0.5) * window[axis] / shape[axis]) / size[axis]
            for axis, number in ((0, row), (1, column))
        ]
        out[:, row, column] = sampled(
            encoding.embedding, *(at * extent - 0.5 for at, extent in zip(relative, encoding.cells, strict=True))
        )
    return out


@pytest.mark.parametrize(
    ("grid", "cells", "size", "side", "stride"),
    [
        ((8, 8), (8.0, 8.0), (64, 64), 32, 16),
        ((6, 8), (6.0, 8.0), (48, 64), 32, 16),
        ((6, 8), (5.375, 8.0), (43, 64), 32, 16),  # the last row shows the image in part
        ((8, 3), (8.0, 2.1), (160, 48), 48, 20),
        ((5, 8), (4.6, 8.0), (336, 588), 224, 100),
        ((4, 4), (4.0, 4.0), (100, 36), 64, 30),  # stretched, as SAM 2 does it
        ((2, 2), (2.0, 2.0), (640, 640), 64, 64),  # a window sees a fraction of a cell
        ((1, 8), (0.125, 8.0), (16, 320), 64, 50),  # an image of hardly a pixel
        ((8, 8), (8.0, 8.0), (20, 20), 64, 16),
    ],
)
def test_same_as_a_plain_loop(grid, cells, size, side, stride):
    encoding, windows = encoded(grid, cells), cut(torch.zeros(3, *size), side, stride)
    for position in windows.positions:
        found = window_proxy(encoding, position, windows.shape, size)
        expected = by_loop(encoding, position, windows.shape, size)
        assert found.shape == expected.shape and found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_windows_on_cells_see_parts_of_the_embedding():
    """Windows of 4 by 4 cells, a cell being 14 pixels of the resized image, 2 cells apart; one window sees all."""
    encoding = encoded((6, 8), (6.0, 8.0))
    torch.testing.assert_close(window_proxy(encoding, (0, 0), (84, 112), (84, 112)), encoding.embedding)
    for top, left in itertools.product((0, 28), (0, 28, 56)):
        found = window_proxy(encoding, (top, left), (56, 56), (84, 112))
        expected = encoding.embedding[:, top // 14 : top // 14 + 4, left // 14 : left // 14 + 4]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
