import os

import pytest
from PIL import Image

from data_prep.captions.duplicates import fingerprint
from data_prep.captions.evaluation_photos import EvaluationImages, EvaluationPhotos
from simzss.errors import InputError
from tests.support.files import encode, picture
from tests.support.official_layouts import ade20k, voc2012


def smooth(seed, size=(64, 48)):
    """A picture of broad strokes, as photos have them."""
    return picture(seed, (8, 6)).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def sets(tmp_path):
    voc2012(tmp_path / "sets")
    ade20k(tmp_path / "sets")
    return tmp_path / "sets"


def test_evaluation_photos_are_found_without_masks(sets):
    photos = EvaluationPhotos.find([sets])
    assert {path.suffix for path in photos.names} == {".jpg"}
    assert {name.split(":")[0] for name in photos.names.values()} == {"voc20, voc21", "ade20k"}
    assert {"cityscapes", "coco_stuff"} <= photos.missing.keys() and "ade20k" not in photos.missing


def test_match_names_the_nearest(sets):
    photos = EvaluationPhotos.find([sets])
    images = EvaluationImages.compute(photos, distance=4)
    for path, name in photos.names.items():
        own = fingerprint(b"", Image.open(path).convert("RGB"))[1]
        nearest = min((value.item() ^ own).bit_count() for value in images.hashes)
        assert nearest == 0 and images.match(own) == name
        assert images.match(own ^ 0b1111) is not None
    far = 0
    while min((value.item() ^ far).bit_count() for value in images.hashes) <= 4:
        far += 1
    assert images.match(far) is None


def test_kept_hashes_are_used_until_a_photo_changes(sets, tmp_path):
    path = tmp_path / "kept.npz"
    first = EvaluationImages.kept(path, EvaluationPhotos.find([sets]), 4)
    written = path.stat().st_mtime_ns
    again = EvaluationImages.kept(path, EvaluationPhotos.find([sets]), 4)
    assert path.stat().st_mtime_ns == written and again.names == first.names and (again.hashes == first.hashes).all()
    photo = min(EvaluationPhotos.find([sets]).names)
    photo.write_bytes(encode(smooth(5), "jpeg"))
    os.utime(photo, ns=(0, 1))
    changed = EvaluationImages.kept(path, EvaluationPhotos.find([sets]), 4)
    assert changed.stamp != first.stamp and (changed.hashes != first.hashes).sum() == 1
    path.write_bytes(b"broken")
    assert (EvaluationImages.kept(path, EvaluationPhotos.find([sets]), 4).hashes == changed.hashes).all()


def test_bad_evaluation_folders(tmp_path):
    with pytest.raises(InputError, match=r"filters\.evaluation_root=.*gone is no folder"):
        EvaluationPhotos.find([tmp_path / "gone"])
    with pytest.raises(InputError, match="holds none of the evaluation sets"):
        EvaluationPhotos.find([tmp_path])


def test_broken_evaluation_photo_is_named(sets):
    photos = EvaluationPhotos.find([sets])
    photo = min(photos.names)
    photo.write_bytes(b"no image")
    with pytest.raises(InputError, match=photo.name):
        EvaluationImages.compute(photos, 4)
