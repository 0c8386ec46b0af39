"""Photos as the models take them."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from simzss.data.transforms import ShortSide
from simzss.errors import DataError
from simzss.models.sam.sam import SamResize
from simzss.segmentation.inference.prepare import Preparation, Prepared, part_boxes, read_photo
from tests.support.files import picture


def tensors(prepared: Prepared) -> list[torch.Tensor]:
    return [prepared.pixels, *([] if prepared.sam is None else [prepared.sam]), *prepared.parts]


def same(one: Prepared, other: Prepared) -> bool:
    pairs = zip(tensors(one), tensors(other), strict=True)
    return one.size == other.size and all(torch.equal(first, second) for first, second in pairs)


def test_each_model_sees_the_photo_in_its_own_size():
    """And not what was resized for another one."""
    photo = picture(0, (120, 40))
    found = Preparation(ShortSide(16, 16))(photo)
    assert found.size == (40, 120) and found.sam is None and found.parts == ()
    assert torch.equal(found.pixels, ShortSide(16, 16)(photo)) and found.pixels.shape == (3, 16, 48)
    found = Preparation(ShortSide(16, 16), SamResize(64))(photo)
    assert torch.equal(found.sam, SamResize(64)(photo)) and found.sam.shape == (3, 21, 64)
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
    assert len(found.parts) == parts and (found.sam is not None) == whole
    for part, (first, last) in zip(found.parts, pairwise(cuts), strict=True):
        piece = pixels[:, first:last] if size[0] >= size[1] else pixels[first:last]
        assert torch.equal(part, SamResize(64)(Image.fromarray(piece)))
    if whole:
        assert torch.equal(found.sam, SamResize(64)(photo))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 64, 1001])
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8])
def test_parts_cover_the_photo_and_stay_inside(length, parts):
    """Of a photo with fewer pixels than parts some pixels are seen twice: a part has at least one."""
    for width, height in ((length, 1), (1, length), (length, length)):
        boxes = part_boxes(width, height, parts)
        along = [(box[0], box[2]) if width >= height else (box[1], box[3]) for box in boxes]
        across = {(box[1], box[3]) if width >= height else (box[0], box[2]) for box in boxes}
        assert len(boxes) == parts and across == {(0, min(width, height))} and along == sorted(along)
        assert all(0 <= first < last <= length for first, last in along)
        assert {pixel for first, last in along for pixel in range(first, last)} == set(range(length))
        if length >= parts:
            assert all(before[1] == after[0] for before, after in pairwise(along))
            lengths = [last - first for first, last in along]
            assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (600, 1), (3, 700)])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_thin_photos(size, parts):
    """No side is empty, and nothing but the photo is seen."""
    found = Preparation(ShortSide(16, 16), SamResize(64), parts)(Image.new("RGB", size, (255, 200, 9)))
    assert found.size == size[::-1] and len(found.parts) == (parts if parts > 1 else 0)
    for pixels in tensors(found):
        assert pixels.numel() > 0 and (pixels == torch.tensor([255, 200, 9]).view(3, 1, 1)).all()
    assert all(max(pixels.shape[1:]) == 64 for pixels in tensors(found)[1:])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_any_mode(mode):
    photo, preparation = picture(2, (60, 30)).convert(mode), Preparation(ShortSide(16, 16), SamResize(64), 2)
    assert same(preparation(photo), preparation(photo.convert("RGB")))
    clear = preparation(Image.new("RGBA", (60, 30), (9, 9, 9, 0)))
    assert all((pixels == 255).all() for pixels in tensors(clear))


@pytest.mark.parametrize("options", [(), (SamResize(64),), (SamResize(64, square=True), 3, False)])
def test_other_processes_prepare_alike(options):
    """Data-loading workers get the preparation, and give back what it made."""
    preparation, photo = Preparation(ShortSide(32, 16), *options), picture(3, (70, 45))
    again = pickle.loads(pickle.dumps(preparation))
    assert again == preparation and same(pickle.loads(pickle.dumps(again(photo))), preparation(photo))


# Photos of any kind ---------------------------------------------------------------------------------------------------

NOISE = np.random.default_rng(0).integers(0, 256, (31, 47, 4), dtype=np.uint8)


def test_files_are_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    for path in (tmp_path / "a.jpg", str(tmp_path / "a.jpg")):
        assert read_photo(path).size == (20, 40)


def test_arrays_are_images():
    expected = NOISE[..., :3]
    assert np.array_equal(read_photo(expected), expected)
    assert np.array_equal(read_photo(NOISE[..., 0]), np.stack([NOISE[..., 0]] * 3, axis=2))
    opaque = NOISE.copy()
    opaque[..., 3] = np.where(NOISE[..., 3] > 127, 255, 0)
    white = np.where(opaque[..., 3:] > 0, expected, 255)
    assert np.array_equal(read_photo(opaque), white) and np.array_equal(read_photo(Image.fromarray(opaque)), white)


def test_grey_of_sixteen_bits_is_scaled():
    assert np.array_equal(read_photo(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)), read_photo(NOISE[..., 0]))


@pytest.mark.parametrize(
    ("photo", "says"),
    [
        (NOISE.astype(np.float32), r"uint8, not \(31, 47, 4\) of float32"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"\(4,\)"),
        ("nowhere.jpg", "image nowhere.jpg does not exist"),
    ],
)
def test_no_photos(photo, says):
    with pytest.raises(DataError, match=says):
        read_photo(photo)


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_files_that_hold_no_image(tmp_path, data):
    (tmp_path / "b.png").write_bytes(data)
    with pytest.raises(DataError, match=r"b\.png is no readable image: "):
        read_photo(tmp_path / "b.png")
