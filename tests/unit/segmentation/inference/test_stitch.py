import itertools

import pytest
import torch

from simzss.segmentation.inference.stitch import Splice
from simzss.segmentation.inference.windows import cut
from tests.support.loops import sampled

CHANNELS = 3


def placed(image: tuple[int, int], size: int, stride: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Where windows stand on an image, and their height and width."""
    places, cuts = cut(torch.zeros(3, *image), size, stride)
    return places, (cuts[0].shape[1], cuts[0].shape[2])


def maps_of(places: list, cells: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(CHANNELS, *cells, generator=generator) for _ in places]


def spliced(places, window, image, maps, order=None) -> torch.Tensor:
    splice = Splice(places, window, image)
    for index in order or range(len(places)):
        splice.add(index, maps[index])
    return splice.result()


def by_loop(places, window, image, maps) -> torch.Tensor:
    """Cell by cell and window by window, in float64."""
    cells = maps[0].shape[1:]
    rows, columns = (max(1, round(image[axis] * cells[axis] / window[axis])) for axis in (0, 1))
    out = torch.zeros(len(maps[0]), rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            y, x = (row + 0.5) * (image[0] / rows), (column + 0.5) * (image[1] / columns)  # the centre, in pixels
            seen = [
                sampled(one, (y - top) * cells[0] / window[0] - 0.5, (x - left) * cells[1] / window[1] - 0.5)
                for (top, left), one in zip(places, maps, strict=True)
                if top <= y < top + window[0] and left <= x < left + window[1]
            ]
            out[:, row, column] = sum(seen) / len(seen)
    return out


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


@pytest.mark.parametrize("case", CASES)
def test_same_as_a_plain_loop(case):
    image, size, stride, cells = CASES[case]
    places, window = placed(image, size, stride)
    maps = maps_of(places, cells)
    found, expected = spliced(places, window, image, maps), by_loop(places, window, image, maps)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_order_does_not_matter(case):
    image, size, stride, cells = CASES[case]
    places, window = placed(image, size, stride)
    maps = maps_of(places, cells)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(1)).tolist()
    expected = spliced(places, window, image, maps)
    for other in (order, list(reversed(range(len(places))))):
        torch.testing.assert_close(spliced(places, window, image, maps, other), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("image", "stride"), [((64, 96), 16), ((64, 96), 8), ((88, 32), 24), ((80, 80), 32)])
def test_aligned_windows_are_the_plain_mean_of_cells(image, stride):
    """Cells of 8 pixels, and windows that stand on multiples of 8: nothing is interpolated."""
    places, window = placed(image, 32, stride)
    maps = maps_of(places, (4, 4))
    total = torch.zeros(CHANNELS, image[0] // 8, image[1] // 8, dtype=torch.float64)
    count = torch.zeros(total.shape[1:], dtype=torch.float64)
    for (top, left), one in zip(places, maps, strict=True):
        for row, column in itertools.product(range(4), repeat=2):
            total[:, top // 8 + row, left // 8 + column] += one[:, row, column]
            count[top // 8 + row, left // 8 + column] += 1
    assert count.min() == 1 and count.max() > 1
    found = spliced(places, window, image, maps)
    torch.testing.assert_close(found.double(), total / count, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "cells"), [((32, 32), (4, 4)), ((20, 32), (3, 4)), ((7, 5), (7, 5)), ((16, 48), (5, 7)), ((1, 1), (1, 1))]
)
def test_one_window_is_the_map(image, cells):
    places, window = placed(image, 48, 16)
    assert places == [(0, 0)] and window == image
    (one,) = maps_of(places, cells)
    assert torch.equal(spliced(places, window, image, [one]), one)


@pytest.mark.parametrize("case", CASES)
def test_constant_maps_stay_constant(case):
    """The shares of a cell sum to one wherever it lies."""
    image, size, stride, cells = CASES[case]
    places, window = placed(image, size, stride)
    value = torch.tensor([0.1, -7.3, 1000.0]).view(3, 1, 1)
    found = spliced(places, window, image, [value.expand(3, *cells)] * len(places))
    torch.testing.assert_close(found, value.expand_as(found), rtol=1e-6, atol=0)


def test_maps_of_half_precision_are_added_in_single_precision():
    image, size, stride, cells = CASES["odd sizes"]
    places, window = placed(image, size, stride)
    maps = [one.bfloat16() for one in maps_of(places, cells)]
    found = spliced(places, window, image, maps)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), by_loop(places, window, image, maps), rtol=1e-5, atol=1e-5)


def test_maps_are_not_changed():
    image, size, stride, cells = CASES["aligned"]
    for places, window in (placed(image, size, stride), ([(0, 0)], image)):
        maps = maps_of(places, cells)
        before = [one.clone() for one in maps]
        spliced(places, window, image, maps).zero_()
        assert all(torch.equal(one, other) for one, other in zip(maps, before, strict=True))
