import pytest
import torch

from simzss.models.mask_head.slicing import restore, slice_windows
from tests.support.models import refused

GRIDS = [(1, 1), (1, 3), (3, 1), (2, 2), (2, 3), (4, 2)]


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


@pytest.mark.parametrize("window", [1, 4, 5])
@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_every_pixel_goes_to_its_window(rows, columns, window):
    images = numbered(2, 3, rows * window, columns * window)
    windows = slice_windows(images, window)
    assert windows.shape == (2 * rows * columns, 3, window, window)
    for image in range(2):
        for y in range(rows * window):
            for x in range(columns * window):
                number = image * rows * columns + y // window * columns + x // window
                assert windows[number, :, y % window, x % window].equal(images[image, :, y, x])


@pytest.mark.parametrize("cells", [(1, 1), (2, 2), (3, 5)], ids=str)
@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_every_cell_goes_to_its_place(rows, columns, cells):
    height, width = cells
    maps = numbered(2 * rows * columns, 3, height, width)
    restored = restore(maps, rows, columns)
    assert restored.shape == (2, 3, rows * height, columns * width)
    for image in range(2):
        for y in range(rows * height):
            for x in range(columns * width):
                number = image * rows * columns + y // height * columns + x // width
                assert restored[image, :, y, x].equal(maps[number, :, y % height, x % width])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_restoring_undoes_slicing(rows, columns, dtype):
    images = (numbered(3, 3, rows * 6, columns * 6) % 251).to(dtype)
    restored = restore(slice_windows(images, 6), rows, columns)
    assert restored.dtype == dtype and restored.equal(images)


@pytest.mark.parametrize(("height", "width"), [(8, 6), (6, 8), (3, 8), (0, 4), (4, 0)])
def test_an_image_that_is_not_made_of_windows(height, width):
    refused(
        lambda: slice_windows(torch.zeros(1, 3, height, width), 4), f"{height} x {width} pixels", "windows of 4 x 4"
    )
