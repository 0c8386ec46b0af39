"""Frames, prompts and masks of Segment Anything models, against loops."""

import pickle

import numpy as np
import pytest
import torch

from simzss.models.sam.load import load_sam
from simzss.models.sam.sam import Prompts, SamMasks, SamResize
from tests.support.loops import sampled
from tests.support.models import refused
from tests.unit.models.sam.tiny import image, save_first


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    return load_sam(str(save_first(tmp_path_factory.mktemp("sam"))))


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (375, 500, (768, 1024)),
        (500, 333, (1024, 682)),  # 681.98
        (1024, 1024, (1024, 1024)),
        (2049, 4098, (512, 1024)),
        (3, 2000, (2, 1024)),  # 1.536
        (1, 5000, (1, 1024)),  # 0.2048
        (5000, 1, (1024, 1)),
    ],
)
def test_size_of_images(height, width, expected):
    assert SamResize(1024).shape(height, width) == expected
    assert SamResize(1024)(image(height, width)).shape == (3, *expected)
    assert SamResize(1024, square=True).shape(height, width) == (1024, 1024)


def test_resizing_needs_no_model():
    resizer = pickle.loads(pickle.dumps(SamResize(64)))
    photo = image(64, 40)
    assert torch.equal(resizer(photo), torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1))
    grey = photo.convert("L")
    assert torch.equal(resizer(grey)[0], resizer(grey)[2])


def test_pixels_of_another_size(sam):
    for shape in ((3, 65, 64), (3, 32, 32), (1, 64, 64), (64, 64), (3, 64, 0)):
        refused(lambda shape=shape: sam.encode(torch.zeros(shape, dtype=torch.uint8)), "long side of 64", str(shape))


# Prompts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"points": torch.zeros(2, 1, 2)},
        {"labels": torch.zeros(2, 1)},
        {"points": torch.zeros(2, 1, 2), "labels": torch.zeros(2)},
        {"points": torch.zeros(2, 2), "labels": torch.zeros(2)},
        {"points": torch.zeros(2, 1, 2), "labels": torch.zeros(2, 1), "boxes": torch.zeros(3, 4)},
        {"boxes": torch.zeros(2, 2, 2)},
        {"masks": torch.zeros(2, 1, 8, 8)},
        {"masks": torch.zeros(2, 0, 8)},
    ],
)
def test_prompts_that_do_not_go_together(options):
    refused(lambda: Prompts(**options), "prompts of SAM", *(str(tuple(value.shape)) for value in options.values()))


@pytest.mark.parametrize("size", [(6, 8), (24, 32), (97, 130), (1, 1)])
def test_mask_prompt_lies_where_the_image_lies(sam, size):
    """Bilinear at the centre of every cell of the decoder's mask, which has two pixels of the frame; zeros outside."""
    encoding = sam.encode(sam.resize(image(43, 64)))
    mask = torch.randn(size, generator=torch.Generator().manual_seed(0))
    side, height, width = 32, 43, 64
    expected = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            y, x = 2 * (row + 0.5) / height, 2 * (column + 0.5) / width  # relative to the image
            if y < 1 and x < 1:
                expected[row, column] = sampled(mask[None], y * size[0] - 0.5, x * size[1] - 0.5)
    found = sam._framed(Prompts(masks=mask[None]), tuple(4 * cells for cells in encoding.cells), side)["input_masks"]
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-5)


def test_mask_prompt_of_a_thin_image(sam):
    encoding = sam.encode(sam.resize(image(1, 400)))
    masks = sam.decode(encoding, Prompts(masks=torch.randn(2, 1, 40)))
    assert encoding.embedding.shape == (32, 1, 8)
    assert masks.logits.isfinite().all() and masks.at((1, 400)).shape == (2, 1, 1, 400)


# Masks at any size ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extent", [(683, 1024), (1024, 1024), (1024, 301), (1, 1024)])
@pytest.mark.parametrize("size", [(5, 7), (33, 40), (50, 21), (1, 1)])
def test_masks_at_any_size(extent, size):
    """A pixel of the image lies in the frame of 1024 pixels by its share of the image's extent there."""
    frame, side = 1024, 16
    logits = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    masks = SamMasks(logits, torch.zeros(2, 3), (extent[0] * side / frame, extent[1] * side / frame))
    found = masks.at(size)
    assert found.shape == (2, 3, *size)
    for row in range(size[0]):
        for column in range(size[1]):
            y, x = (row + 0.5) / size[0] * extent[0], (column + 0.5) / size[1] * extent[1]
            for prompt in range(2):
                expected = sampled(logits[prompt], y * side / frame - 0.5, x * side / frame - 0.5)
                torch.testing.assert_close(found[prompt, :, row, column].double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(masks.at(size, torch.tensor([1])), found[1:])
    assert torch.equal(masks.at(size, torch.tensor([1, 0, 1])), found[[1, 0, 1]])
