import pytest

from simzss.atomic import read_json, write_json, write_whole
from tests.support.files import contents


def test_write_whole(tmp_path):
    path = tmp_path / "file"
    write_whole(path, lambda stream: stream.write(b"first"))
    assert path.read_bytes() == b"first"

    def fails(stream):
        stream.write(b"second, and no more")
        raise RuntimeError("half")

    with pytest.raises(RuntimeError):
        write_whole(path, fails)
    assert contents(tmp_path) == {"file": b"first"}


def test_json_comes_back(tmp_path):
    content = {"name": "café \ud83d", "numbers": [1, 2.5, None]}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert read_json(tmp_path / "gone.json") is None
    (tmp_path / "broken.json").write_text('{"a": ')
    assert read_json(tmp_path / "broken.json") is None
