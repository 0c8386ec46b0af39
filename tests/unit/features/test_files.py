import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from simzss.data.shards import Skipped
from simzss.features.files import ImageTexts, find_damage, open_features, write_features
from tests.support.caching import file_size_limit
from tests.support.files import caption, contents
from tests.support.models import refused

TEXTS = [ImageTexts("1", (caption("a dog", "dog"), caption("éé 写真"))), ImageTexts("half \ud83d", (caption("cat"),))]
STATM = Path("/proc/self/statm")
SKIPPED = (Skipped("3", "unreadable image: \ud83d", "a.tar"),)
METADATA = {"facts": "abc", "shard": "a.tar"}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "cls": torch.randn(2, 1, 5, generator=generator).bfloat16(),
        "patches": torch.randint(-127, 128, (2, 1, 3, 5), generator=generator, dtype=torch.int8),
        "scale": torch.rand(2, 1, 3, generator=generator),
    }


def write(path):
    return write_features(path, tensors(), TEXTS, SKIPPED, METADATA)


def test_what_is_written_comes_back(tmp_path):
    record = write(tmp_path / "x.safetensors")
    file = open_features(tmp_path / "x.safetensors")
    assert (file.texts, file.skipped, file.metadata) == (TEXTS, SKIPPED, METADATA)
    assert file.tensors.keys() == tensors().keys()
    assert all(file.tensors[name].equal(tensor) for name, tensor in tensors().items())
    data = (tmp_path / "x.safetensors").read_bytes()
    assert (record.name, record.images, record.bytes) == ("x.safetensors", 2, len(data))
    assert record.sha256 == hashlib.sha256(data).hexdigest()


def test_it_is_a_safetensors_file_as_the_library_writes_them(tmp_path):
    write(tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == {"texts", *tensors()}
    save_file(found, tmp_path / "library.safetensors", METADATA)
    again = load_file(tmp_path / "library.safetensors")
    assert all(again[name].equal(tensor) and again[name].dtype == tensor.dtype for name, tensor in found.items())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == METADATA


def test_the_bytes_are_those_of_before(tmp_path):
    """Checksums in the indexes of old caches hold for what is made again."""
    content = {"cls": torch.arange(10.0).view(2, 1, 5).bfloat16(), "patches": torch.arange(30).view(2, 1, 3, 5).char()}
    record = write_features(tmp_path / "x", content, TEXTS, SKIPPED, METADATA)
    assert record.sha256 == "96097b3aeebed55bac87ee9584909ff2c9b24e11861bb0193416d8feaf75e375"


def test_no_images_and_slices(tmp_path):
    """Rows of a larger block, as `build` writes them."""
    block = {name: torch.cat([tensor, tensor]) for name, tensor in tensors().items()}
    write_features(tmp_path / "a", {name: tensor[:2] for name, tensor in block.items()}, TEXTS, SKIPPED, METADATA)
    write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def resident():
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not STATM.exists(), reason="memory is told by /proc")
def test_tensors_are_mapped(tmp_path):
    size = 64_000_000
    big = {"patches": torch.ones(1, 1, 1, size, dtype=torch.int8)}
    write_features(tmp_path / "x", big, TEXTS[:1], (), METADATA)
    del big
    before = resident()
    file = open_features(tmp_path / "x")
    assert resident() - before < size / 4
    assert file.tensors["patches"].flatten()[::4096].sum() == size // 4096
    assert resident() - before > size / 2


def test_full_disk_leaves_nothing(tmp_path):
    write(tmp_path / "before")
    before = contents(tmp_path)
    with file_size_limit(300), pytest.raises(OSError, match="too large"):
        write(tmp_path / "x")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", ["header", "texts", "empty", "cut", "gone", "foreign"])
def test_broken_files_are_one_line(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    write(path)
    data = path.read_bytes()
    if damage == "foreign":
        save_file({"a": torch.zeros(1)}, path)
    elif damage == "gone":
        path.unlink()
    else:
        changed = {"header": b"\xff" * 20 + data[20:], "texts": data.replace(b'"images"', b'"imagos"'), "empty": b""}
        path.write_bytes(changed.get(damage, data[:-5]))
    message = refused(lambda: open_features(path), str(path), "run simzss cache again")
    assert "remove it" in message


def test_find_damage(tmp_path):
    path = tmp_path / "x"
    record = write(path)
    assert find_damage(path, record) is None
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "SHA-256" in find_damage(path, record)
    path.write_bytes(data[:-1])
    assert "size" in find_damage(path, record)
    path.unlink()
    assert "missing" in find_damage(path, record)
