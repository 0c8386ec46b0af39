import pytest
from PIL import Image

from simzss.segmentation.run import _read
from tests.support.files import picture


def test_photos_are_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    (photo,), error = _read([tmp_path / "a.jpg"])
    assert photo.size == (20, 40) and error is None


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_photos_before_a_broken_one_are_read(tmp_path, data):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(data)
    photos, error = _read([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "a.png"])
    assert len(photos) == 1 and str(error).startswith(f"{tmp_path}/b.png is no readable image: ")
