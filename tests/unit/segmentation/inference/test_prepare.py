import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from simzss.data.transforms import ShortSide
from simzss.models.sam.sam import SamResize
from simzss.segmentation.inference.prepare import Preparation, _boxes
from tests.support.files import picture


def equal(first, second) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def test_without_sam():
    photo = picture(0, (60, 40))
    found = Preparation(ShortSide(32, 16))(photo)
    assert found.size == (40, 60)
    assert torch.equal(found.pixels, ShortSide(32, 16)(photo)) and found.pixels.shape == (3, 32, 48)
    assert found.sam is None and found.parts == ()


def test_sam_sees_the_photo_and_not_what_was_resized():
    photo = picture(0, (120, 40))
    found = Preparation(ShortSide(16, 16), SamResize(64))(photo)
    assert torch.equal(found.sam, SamResize(64)(photo)) and found.sam.shape == (3, 21, 64)
    assert found.pixels.shape == (3, 16, 48) and found.parts == ()
    assert Preparation(ShortSide(16, 16), SamResize(64, square=True))(photo).sam.shape == (3, 64, 64)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("size", "parts", "cuts"),
    [
        ((100, 40), 2, [0, 50, 100]),
        ((40, 100), 2, [0, 50, 100]),
        ((101, 100), 3, [0, 34, 67, 101]),
        ((64, 64), 2, [0, 32, 64]),  # of a square one the width
        ((7, 5), 4, [0, 2, 4, 5, 7]),  # 1.75, 3.5, 5.25
    ],
)
def test_parts_lie_along_the_longer_side(size, parts, cuts, whole):
    """Each fills SAM's frame as if it was a photo of its own."""
    photo = picture(1, size)
    found = Preparation(ShortSide(16, 16), SamResize(64), parts, whole)(photo)
    pixels = np.asarray(photo)
    assert len(found.parts) == parts
    for part, (first, last) in zip(found.parts, pairwise(cuts), strict=True):
        piece = pixels[:, first:last] if size[0] >= size[1] else pixels[first:last]
        assert torch.equal(part, SamResize(64)(Image.fromarray(piece)))
    assert equal(found.sam, SamResize(64)(photo) if whole else None)
    assert torch.equal(found.pixels, ShortSide(16, 16)(photo)) and found.size == (size[1], size[0])


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 64, 1001])
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8])
def test_parts_cover_the_photo_and_stay_inside(length, parts):
    """Of a photo with fewer pixels than parts some pixels are seen twice: a part has at least one."""
    for width, height in ((length, 1), (1, length), (length, length)):
        boxes = _boxes(width, height, parts)
        assert len(boxes) == parts
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
        along = [(box[0], box[2]) if width >= height else (box[1], box[3]) for box in boxes]
        assert {pixel for first, last in along for pixel in range(first, last)} == set(range(length))
        assert along == sorted(along)
        if length >= parts:
            assert all(before[1] == after[0] for before, after in pairwise(along))
            lengths = [last - first for first, last in along]
            assert max(lengths) - min(lengths) <= 1
        across = [(box[1], box[3]) if width >= height else (box[0], box[2]) for box in boxes]
        assert set(across) == {(0, min(width, height))}


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (600, 1), (1, 600), (3, 700)])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_thin_photos(size, parts):
    photo = Image.new("RGB", size, (255, 200, 9))
    found = Preparation(ShortSide(16, 16), SamResize(64), parts)(photo)
    assert found.size == (size[1], size[0]) and min(found.pixels.shape) >= 3
    assert len(found.parts) == (parts if parts > 1 else 0)
    colour = torch.tensor([255, 200, 9], dtype=torch.uint8).view(3, 1, 1)
    for pixels in (found.pixels, found.sam, *found.parts):
        # No side is empty, and nothing but the photo is seen.
        assert pixels.numel() > 0
        assert (pixels == colour).all()
    for pixels in (found.sam, *found.parts):
        assert max(pixels.shape[1:]) == 64


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_any_mode(mode):
    photo = picture(2, (60, 30)).convert(mode)
    preparation = Preparation(ShortSide(16, 16), SamResize(64), 2)
    found, expected = preparation(photo), preparation(photo.convert("RGB"))
    assert torch.equal(found.pixels, expected.pixels) and torch.equal(found.sam, expected.sam)
    assert all(torch.equal(one, other) for one, other in zip(found.parts, expected.parts, strict=True))


def test_transparency_is_white_for_all_models():
    photo = Image.new("RGBA", (60, 30), (9, 9, 9, 0))
    found = Preparation(ShortSide(16, 16), SamResize(64), 2)(photo)
    for pixels in (found.pixels, found.sam, *found.parts):
        assert (pixels == 255).all()


@pytest.mark.parametrize(
    "preparation",
    [
        Preparation(ShortSide(32, 16)),
        Preparation(ShortSide(32, 16), SamResize(64)),
        Preparation(ShortSide(32, 16), SamResize(64, square=True), 3, whole=False),
    ],
    ids=["backbone", "sam", "parts"],
)
def test_other_processes_prepare_alike(preparation):
    """Data-loading workers get the preparation, and give back what it made."""
    again = pickle.loads(pickle.dumps(preparation))
    assert again == preparation
    photo = picture(3, (70, 45))
    found, expected = pickle.loads(pickle.dumps(again(photo))), preparation(photo)
    assert found.size == expected.size and equal(found.pixels, expected.pixels) and equal(found.sam, expected.sam)
    assert len(found.parts) == len(expected.parts)
    assert all(equal(one, other) for one, other in zip(found.parts, expected.parts, strict=True))
