"""Maps of windows as one map of the image."""

import itertools

import pytest
import torch

from simzss.segmentation.inference.stitch import Stitch
from simzss.segmentation.inference.windows import cut
from tests.support.loops import sampled

CASES = {  # image, side and stride of windows, cells of a window
    "aligned": ((64, 96), 32, 16, (4, 4)),
    "side by side": ((64, 96), 32, 32, (4, 4)),
    "flush with the end between cells": ((72, 108), 32, 16, (4, 4)),
    "stride between cells": ((64, 92), 32, 12, (4, 4)),
    "odd sizes": ((37, 53), 16, 10, (4, 4)),
    "odd windows": ((40, 31), 15, 11, (5, 3)),
    "last one a pixel on": ((33, 65), 32, 16, (4, 4)),
    "lower than a window": ((20, 70), 32, 16, (4, 4)),
    "cells that do not divide a window": ((50, 70), 32, 16, (3, 5)),
    "more windows than cells": ((30, 42), 28, 1, (2, 2)),
    "windows of one cell": ((48, 80), 32, 16, (1, 1)),
    "one cell across": ((48, 80), 32, 16, (4, 1)),
    "smaller than a window": ((20, 15), 32, 16, (4, 3)),
    "a pixel high": ((1, 90), 32, 16, (1, 4)),
    "finer than pixels": ((9, 12), 6, 4, (8, 8)),
}


def maps_of(count: int, cells: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *cells, generator=generator) for _ in range(count)]


def stitched(image: tuple[int, int], size: int, stride: int, maps, order=None) -> torch.Tensor:
    windows = cut(torch.zeros(3, *image), size, stride)
    stitch = Stitch(windows.positions, windows.shape, image)
    for index in order or range(len(windows.positions)):
        stitch.add(index, maps[index])
    return stitch.result()


def by_loop(positions, window, image, maps) -> torch.Tensor:
    """Cell by cell and window by window, in float64."""
    cells = maps[0].shape[1:]
    rows, columns = (max(1, round(image[axis] * cells[axis] / window[axis])) for axis in (0, 1))
    out = torch.zeros(len(maps[0]), rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            y, x = (row + 0.5) * (image[0] / rows), (column + 0.5) * (image[1] / columns)  # the centre, in pixels
            seen = [
                sampled(one, (y - top) * cells[0] / window[0] - 0.5, (x - left) * cells[1] / window[1] - 0.5)
                for (top, left), one in zip(positions, maps, strict=True)
                if top <= y < top + window[0] and left <= x < left + window[1]
            ]
            out[:, row, column] = sum(seen) / len(seen)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_same_as_a_plain_loop(case, dtype):
    """In any order of the windows; few digits are added in float32; constants stay; nothing given is changed."""
    image, size, stride, cells = CASES[case]
    windows = cut(torch.zeros(3, *image), size, stride)
    maps = [one.to(dtype) for one in maps_of(len(windows.positions), cells)]
    before = [one.clone() for one in maps]
    expected = by_loop(windows.positions, windows.shape, image, maps)
    order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(1)).tolist()
    for chosen in (None, order, order[::-1]):
        found = stitched(image, size, stride, maps, chosen)
        assert found.dtype == torch.float32 and found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        found.zero_()
    assert all(torch.equal(one, other) for one, other in zip(maps, before, strict=True))
    value = torch.tensor([0.1, -7.3, 1000.0]).view(3, 1, 1)
    found = stitched(image, size, stride, [value.expand(3, *cells)] * len(maps))
    torch.testing.assert_close(found, value.expand_as(found), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("image", "stride"), [((64, 96), 16), ((64, 96), 8), ((88, 32), 24), ((80, 80), 32)])
def test_aligned_windows_are_the_plain_mean_of_cells(image, stride):
    """Cells of 8 pixels, and windows at multiples of 8: nothing is interpolated."""
    positions = cut(torch.zeros(3, *image), 32, stride).positions
    maps = maps_of(len(positions), (4, 4))
    total = torch.zeros(3, image[0] // 8, image[1] // 8, dtype=torch.float64)
    count = torch.zeros(total.shape[1:], dtype=torch.float64)
    for (top, left), one in zip(positions, maps, strict=True):
        for row, column in itertools.product(range(4), repeat=2):
            total[:, top // 8 + row, left // 8 + column] += one[:, row, column]
            count[top // 8 + row, left // 8 + column] += 1
    assert count.min() == 1 and count.max() > 1
    torch.testing.assert_close(stitched(image, 32, stride, maps).double(), total / count, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "cells"), [((32, 32), (4, 4)), ((20, 32), (3, 4)), ((7, 5), (7, 5)), ((16, 48), (5, 7)), ((1, 1), (1, 1))]
)
def test_one_window_is_the_map(image, cells):
    (one,) = maps_of(1, cells)
    assert torch.equal(stitched(image, 48, 16, [one]), one)
