import pytest

from simzss.atomic import atomic_write, read_json, write_json
from tests.support.files import contents


def test_all_or_nothing(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, b"first")
    atomic_write(path, lambda stream: stream.write(b"second"))
    assert path.read_bytes() == b"second"

    def fails(stream):
        stream.write(b"third, and no more")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        atomic_write(path, fails)
    assert caught.value.filename == str(path)
    assert contents(tmp_path) == {"file": b"second"}


def test_json_comes_back(tmp_path):
    content = {"name": "café \ud83d", "numbers": [1, 2.5, None]}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert read_json(tmp_path / "gone.json") is None
    (tmp_path / "broken.json").write_text('{"a": ')
    assert read_json(tmp_path / "broken.json") is None
