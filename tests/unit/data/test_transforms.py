import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from simzss.data.shards import decode_image
from simzss.data.transforms import RandomCrop, WholeImage


def photo(width, height):
    """A smooth picture: nothing in it is finer than a few pixels."""
    y, x = np.mgrid[:height, :width] / height * 6
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1) * 100 + 128
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "least", "decoded"),
    [
        ((640, 480), None, (640, 480)),
        ((640, 480), 241, (640, 480)),
        ((640, 480), 240, (320, 240)),
        ((480, 640), 120, (120, 160)),
        ((640, 480), 10, (80, 60)),
        ((100, 80), 224, (100, 80)),
    ],
)
def test_no_side_is_decoded_below_what_is_needed(size, least, decoded):
    assert decode_image(photo(*size), least).size == decoded


def test_a_png_has_no_draft():
    buffer = io.BytesIO()
    Image.new("RGB", (640, 480)).save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), 32).size == (640, 480)


def test_a_draft_shows_the_same_picture():
    data, transform = photo(640, 480), WholeImage(64)
    whole, draft = (transform(decode_image(data, least)).float() for least in (None, transform.least))
    assert whole.shape == draft.shape == (3, 64, 64)
    assert (whole - draft).abs().mean() < 2  # of 255 grey values


def test_no_crop_is_enlarged():
    transform = RandomCrop(64)
    pixels = torch.empty(3, transform.least, transform.least)
    crop = v2.RandomResizedCrop(transform.size, (transform.min_scale, 1.0), (3 / 4, 4 / 3))
    found = [crop.make_params([pixels]) for _ in range(300)]
    assert min(min(params["height"], params["width"]) for params in found) >= 63  # a crop is rounded to whole pixels
