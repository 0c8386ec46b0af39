import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from simzss.data.images import decode_image
from simzss.data.transforms import RandomCrop, WholeImage
from tests.support.files import picture


def photo(width, height):
    """A smooth picture: nothing in it is finer than a few pixels."""
    y, x = np.mgrid[:height, :width] / height * 6
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1) * 100 + 128
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "min_side", "decoded"),
    [
        ((640, 480), None, (640, 480)),
        ((640, 480), 241, (640, 480)),
        ((640, 480), 240, (320, 240)),
        ((480, 640), 120, (120, 160)),
        ((640, 480), 10, (80, 60)),
        ((100, 80), 224, (100, 80)),
    ],
)
def test_no_side_is_decoded_below_what_is_needed(size, min_side, decoded):
    assert decode_image(photo(*size), min_side).size == decoded


def test_a_png_has_no_draft():
    buffer = io.BytesIO()
    Image.new("RGB", (640, 480)).save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), 32).size == (640, 480)


def test_a_draft_shows_the_same_picture():
    data, transform = photo(640, 480), WholeImage(64)
    whole, draft = (transform(decode_image(data, side)).float() for side in (None, transform.min_side))
    assert whole.shape == draft.shape == (3, 64, 64)
    assert (whole - draft).abs().mean() < 2  # of 255 grey values


def test_no_crop_is_enlarged():
    transform = RandomCrop(64)
    boxes = [transform.box(transform.min_side, transform.min_side) for _ in range(300)]
    assert min(min(height, width) for _, _, height, width in boxes) >= 63  # a crop is rounded to whole pixels


@pytest.mark.parametrize("size", [(640, 480), (30, 900), (700, 20), (3, 3)])
@pytest.mark.parametrize("min_scale", [0.9, 0.2])
def test_crops_are_those_of_torchvision(size, min_scale):
    reference = v2.RandomResizedCrop(32, (min_scale, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    image = picture(0, size)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = reference(v2.functional.pil_to_tensor(image))
        generator = torch.Generator().manual_seed(seed)
        assert RandomCrop(32, min_scale)(image, generator).equal(expected)
        assert generator.get_state().equal(torch.get_rng_state())  # as much was drawn
