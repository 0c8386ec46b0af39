import pytest

from tests.unit.segmentation.small import save_sams


@pytest.fixture(scope="module")
def sams(tmp_path_factory):
    return save_sams(tmp_path_factory.mktemp("sams"))


@pytest.fixture(scope="module")
def sam(sams):
    return sams["first"]


@pytest.fixture
def encoded(sam, monkeypatch):
    """Shapes of the images that the SAM was asked to encode, and whether with the attention."""
    calls, encode = [], sam.encode

    def counted(pixels, attention=False):
        calls.append((tuple(pixels.shape[1:]), attention))
        return encode(pixels, attention)

    monkeypatch.setattr(sam, "encode", counted)
    return calls
