import itertools

import pytest
import torch

from simzss.models.sam.load import load_sam
from simzss.models.sam.sam import SamEncoding
from simzss.segmentation.inference.proxy import window_guide
from simzss.segmentation.inference.windows import cut
from tests.support.loops import sampled
from tests.unit.models.sam.tiny import image, save_first


def encoded(grid: tuple[int, int], cells: tuple[float, float], seed: int = 0) -> SamEncoding:
    """An embedding of noise of an image that takes up so many cells of it, fractions included."""
    embedding = torch.randn(5, *grid, generator=torch.Generator().manual_seed(seed))
    return SamEncoding(embedding, None, cells, embedding[None])


def by_loop(encoding: SamEncoding, place, window, size) -> torch.Tensor:
    """The embedding at the centre of every cell of a window, in float64."""
    shape = [max(1, round(window[axis] / size[axis] * encoding.cells[axis])) for axis in (0, 1)]
    out = torch.zeros(len(encoding.embedding), *shape, dtype=torch.float64)
    for row, column in itertools.product(*map(range, shape)):
        relative = [
            (place[axis] + (number + 0.5) * window[axis] / shape[axis]) / size[axis]
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
        ((1, 8), (0.125, 8.0), (16, 320), 64, 50),
        ((8, 8), (8.0, 8.0), (20, 20), 64, 16),
    ],
)
def test_same_as_a_plain_loop(grid, cells, size, side, stride):
    encoding = encoded(grid, cells)
    places, cuts = cut(torch.zeros(3, *size), side, stride)
    for place, pixels in zip(places, cuts, strict=True):
        found = window_guide(encoding, place, tuple(pixels.shape[1:]), size)
        expected = by_loop(encoding, place, pixels.shape[1:], size)
        assert found.shape == expected.shape and found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_one_window_sees_the_embedding():
    encoding = encoded((6, 8), (6.0, 8.0))
    found = window_guide(encoding, (0, 0), (336, 448), (336, 448))
    torch.testing.assert_close(found, encoding.embedding, rtol=1e-6, atol=1e-6)


def test_windows_on_cells_see_parts_of_the_embedding():
    """Windows of 4 by 4 cells, a cell being 14 pixels of the resized image, 2 cells apart."""
    encoding = encoded((6, 8), (6.0, 8.0))
    places, _ = cut(torch.zeros(3, 84, 112), 56, 28)
    assert len(places) == 6
    for top, left in places:
        row, column = top // 14, left // 14
        found = window_guide(encoding, (top, left), (56, 56), (84, 112))
        expected = encoding.embedding[:, row : row + 4, column : column + 4]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (1, 400), (400, 1), (37, 30)])
def test_embeddings_of_a_sam(height, width, tmp_path):
    """Of images that are hardly a pixel high too; the backbone sees them resized to multiples of its stride."""
    sam = load_sam(str(save_first(tmp_path)))
    encoding = sam.encode(sam.resize(image(height, width)))
    size = (max(16, height // 16 * 16), max(16, width // 16 * 16))
    places, cuts = cut(torch.zeros(3, *size), 32, 16)
    for place, pixels in zip(places, cuts, strict=True):
        found = window_guide(encoding, place, tuple(pixels.shape[1:]), size)
        assert min(found.shape) > 0 and found.isfinite().all()
        torch.testing.assert_close(
            found.double(), by_loop(encoding, place, pixels.shape[1:], size), rtol=1e-5, atol=1e-5
        )
