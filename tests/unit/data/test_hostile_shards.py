"""Shards of strangers: nothing of them runs, is followed out of the tar, or fills the memory."""

import gzip
import io
import random
import tarfile
from pathlib import Path

import pytest

from simzss.data.index import DamagedShardError, require_sizes
from simzss.data.shards import Sample, count_samples, read_shards, summarise_skipped
from simzss.data.tars import Skipped, read_tar
from tests.support.caching import jpeg_shards, make_cache
from tests.support.files import annotation, image_bytes, list_shards, make_shards
from tests.support.memory import peak_of

pytestmark = pytest.mark.hostile

MB = 1 << 20


def header(name: str, kind: bytes, size: int = 0, **fields) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, kind, len(data)) + data + bytes(-len(data) % 512)


GOOD = member("good.png", image_bytes()) + member("good.json", annotation())


def long_sparse_map(name: str, blocks: int) -> bytes:
    """A sparse file of the old GNU kind whose map goes on for many blocks."""
    info = bytearray(header(name, tarfile.GNUTYPE_SPARSE))
    info[482] = 1
    info[148:156] = b" " * 8
    info[148:156] = f"{sum(info):06o}\0 ".encode()
    more = bytearray(512)
    more[504] = 1
    return bytes(info) + bytes(more) * blocks


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (header("bad.png", tarfile.SYMTYPE, linkname="/etc/passwd"), "no plain file: link"),
        (header("bad.png", tarfile.LNKTYPE, linkname="good.png"), "no plain file: link"),
        (header("bad.png", tarfile.CHRTYPE, devmajor=1, devminor=5), "no plain file: device"),
        (header("bad.png", tarfile.FIFOTYPE), "no plain file: device"),
        (header("bad.png", tarfile.GNUTYPE_SPARSE), "no plain file: sparse"),
    ],
    ids=["link", "hard link", "device", "pipe", "sparse"],
)
@pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["plain", "gz"])
def test_what_is_no_plain_file_is_counted_and_the_rest_is_read(tmp_path, bad, reason, packed):
    (tmp_path / "s.tar").write_bytes(packed(member("bad.json", annotation()) + bad + GOOD + bytes(1024)))
    records = list(read_shards([str(tmp_path / "s.tar")]))
    assert [record.key for record in records if isinstance(record, Sample)] == ["good"]
    assert {"bad.png": reason, "bad": "no image in the sample"} == {
        record.key: record.reason for record in records if isinstance(record, Skipped)
    }


def test_names_are_keys_and_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("../out", "/tmp/absolute", "C:\\x", "a\x1b[2Jb", "n" * 300, "./dot/../up")
    pairs = b"".join(member(f"{name}.png", image_bytes()) + member(f"{name}.json", annotation()) for name in names[:4])
    Path("s.tar").write_bytes(pairs + bytes(1024))
    before = sorted(tmp_path.parent.rglob("*"))
    assert [record.key for record in read_shards(["s.tar"])] == ["../out", "/tmp/absolute", "C:\\x", "a\x1b[2Jb"]
    assert sorted(tmp_path.parent.rglob("*")) == before


def bomb(path: Path, *parts: bytes | int) -> str:
    """A gz tar of parts; a number stands for so many zero bytes."""
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for part in parts:
            for size in [part] if isinstance(part, bytes) else [MB] * (part // MB):
                stream.write(size if isinstance(size, bytes) else bytes(size))
    return str(path)


GROWS = "unreadable tar: it grows"
LONG = "unreadable tar: a header that is too long"
BOMBS = {
    "large member": ((header("a.png", tarfile.REGTYPE, 8 << 30), 600 * MB), GROWS),
    "long name": ((header("a.png", tarfile.GNUTYPE_LONGNAME, 1 << 30), 64 * MB), LONG),
    "attributes": ((header("a.png", tarfile.XHDTYPE, 1 << 30), 64 * MB), LONG),
    "sparse map": ((long_sparse_map("a.png", 64 * 2048),), LONG),
    "links": ((header("a.png", tarfile.SYMTYPE, linkname="b") * 5000,), "unreadable tar: more than 1000 members"),
    "files of a sample": (tuple(header(f"a.{i}", tarfile.REGTYPE) for i in range(5000)), "unreadable tar: more"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_take_little_memory_and_one_word(tmp_path, kind):
    parts, reason = BOMBS[kind]
    url = bomb(tmp_path / "s.tar", *parts)

    def read() -> None:
        records = list(read_tar(url))
        assert any(isinstance(record, Skipped) and record.reason.startswith(reason) for record in records), records
        count_samples([url])

    assert peak_of(read) < 200 * MB


def test_every_flip_and_cut_of_a_listed_shard_is_an_error(tmp_path):
    first, second, third = list_shards(make_shards(tmp_path, [2, 2, 1]))
    assert len(list(read_shards([first, second, third]))) == 5
    require_sizes([first, second, third])
    whole = Path(second).read_bytes()
    rng = random.Random(0)
    for place in [*(rng.randrange(len(whole)) for _ in range(30)), len(whole) - 1]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        Path(second).write_bytes(flipped)
        with pytest.raises(DamagedShardError, match=f"{second} differs from its index.json"):
            list(read_shards([first, second, third]))
    for url in (second, third):
        Path(url).write_bytes(Path(url).read_bytes()[:1024])
    with pytest.raises(DamagedShardError, match=f"{second} differs .*1024 bytes in place of .*and so do 1 more"):
        require_sizes([first, second, third])


@pytest.mark.parametrize("cut", [512, 1536, 2048, 5120, 7000])
def test_cut_tar_of_strangers_is_counted_and_says_what_is_lost(tmp_path, cut):
    (url,) = make_shards(tmp_path, [5])
    Path(url).write_bytes(Path(url).read_bytes()[:cut])
    skipped = [record for record in read_shards([url]) if isinstance(record, Skipped)]
    assert [record for record in skipped if record.reason.startswith("unreadable tar: ")]
    assert "whatever follows the break" in summarise_skipped(skipped)


def test_broken_header_is_no_end(tmp_path):
    """Tarfile alone takes it for one."""
    (url,) = make_shards(tmp_path, [5])
    whole = bytearray(Path(url).read_bytes())
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        place = archive.getmembers()[4].offset
    whole[place] ^= 1
    Path(url).write_bytes(whole)
    found = list(read_shards([url]))
    assert len(found) == 3 and found[2].reason == "unreadable tar: bad checksum"


@pytest.mark.parametrize(("damage", "says"), [("flip", "its SHA-256 is another one"), ("cut", "bytes in place of")])
@pytest.mark.parametrize("workers", [0, 2])
def test_shard_that_is_not_what_its_index_says_ends_the_work(tmp_path, damage, says, workers):
    urls = list_shards(jpeg_shards(tmp_path / "shards", (3, 4, 5)))
    content = bytearray(Path(urls[1]).read_bytes())
    content[2000] ^= 1
    Path(urls[1]).write_bytes(content if damage == "flip" else content[:2000])
    with pytest.raises(DamagedShardError, match=f"{urls[1]} differs from its index.json .*{says}"):
        make_cache(urls, tmp_path / "c", num_workers=workers)
    assert not list(tmp_path.rglob("features-000001-*"))
