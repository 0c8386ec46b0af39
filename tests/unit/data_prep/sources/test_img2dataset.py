import gzip
import json
import os
import tarfile
from pathlib import Path

import pytest

from data_prep.captions.records import Dropped, RawSample
from data_prep.captions.sources import SourceSettings, open_source, read_task
from simzss.errors import InputError
from tests.support.caption_sources import Reading, loaded, not_loaded, write_img2dataset
from tests.support.files import image_bytes, make_shards, write_tar

ROWS = [
    loaded("000000000", "a dog"),
    not_loaded("000000001", "HTTP Error 404: Not Found"),
    loaded("000000002", " Café tables \n"),
    not_loaded("000000003", "<urlopen error [Errno -2] Name or service not known>"),
    not_loaded("000000004", "Image decoding error", "failed_to_resize"),
    loaded("000000005", None),
]
MISSED = [
    ("image", "http://photos.example/000000001.jpg", "not downloaded: HTTP error 404"),
    ("image", "http://photos.example/000000003.jpg", "not downloaded: failed_to_download"),
    ("image", "http://photos.example/000000004.jpg", "not downloaded: failed_to_resize"),
]


def read(tmp_path: Path, shards: object, **more) -> Reading:
    return Reading(SourceSettings(shards=str(shards), **more), tmp_path / "scratch")


def refused(tmp_path: Path, shards: object, *parts, **more) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, shards, **more)
    message = str(caught.value)
    assert all(str(part) in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize(("texts", "metas"), [(True, True), (True, False), (False, True), (False, False)])
def test_captions_in_texts_metas_or_the_parquet_file(tmp_path, texts, metas):
    tar = write_img2dataset(tmp_path / "00000.tar", ROWS, texts, metas)
    found = read(tmp_path, tar)
    assert found.samples == [
        RawSample("000000000.jpg", "000000000", ("a dog",), image_bytes(0, form="jpeg")),
        RawSample("000000002.jpg", "000000002", ("Café tables",), image_bytes(2, form="jpeg")),
    ]
    assert found.reasons == {*MISSED, ("image", "000000005", "no caption")}
    errors = {record.detail for record in found.dropped if record.reason.startswith("not downloaded")}
    assert errors == {row["error_message"] for row in ROWS if row["error_message"]}
    assert found.outside == []


def test_without_a_parquet_file(tmp_path):
    tar = write_img2dataset(tmp_path / "00000.tar", ROWS)
    tar.with_suffix(".parquet").unlink()
    found = read(tmp_path, tar)
    assert found.captions == {"000000000.jpg": ["a dog"], "000000002.jpg": ["Café tables"]}
    assert found.reasons == {("image", "000000005", "no caption")}


def test_members_of_every_kind(tmp_path):
    members = [
        ("000000001.jpg", image_bytes(1, form="jpeg")),
        ("000000001.txt", b" a dog \n"),
        ("000000001.json", b'{"key": "000000001", "caption": "not this one", "url": "x"}'),
        ("000000002.txt", b"no image here"),
        ("000000003.png", b"no image"),
        ("000000003.txt", b"a dog"),
        ("000000004.png", image_bytes(4)),
        ("000000004.txt", b" \n"),
        ("part/5.webp", image_bytes(5, form="webp")),
        ("part/5.json", '{"caption": "Café tables"}'.encode()),
        ("part/6.jpg", b""),
        ("part/6.json", b'{"caption": null}'),
        ("part/7.jpg", b""),
        ("part/7.txt", b"\xff\xfe\xfa"),
        ("part/8.jpg", b""),
        ("part/8.json", b"{broken"),
        ("part/9.JPG", image_bytes(9, form="jpeg")),
        ("part/9.TXT", b"a cow"),
        ("part/10.jpg", b""),
        ("part/10.json", b'{"caption": "a dog \\ud83d"}'),
        ("part/11.jpg", b""),
        ("part/11.json", b'{"caption": ["a dog"]}'),
        ("part/12.jpg", b""),
        ("part/12.json", b'["a dog"]'),
        ("part/13.jpg", b"first"),
        ("part/13.jpg", b"second"),
        ("part/13.txt", ("dog " * 2500).encode()),
        ("part/14.jpg", b""),
        ("part/14.json", b'{"caption": "\xff"}'),
        ("part/15.jpg", b""),
        ("part/15.json", b"[" * 100_000),
        ("part/16.jpg", b"16"),
        ("part/16.json", b'{"caption": "a cat", "key": 16}'),
        ("part/17.jpg", b"17"),
        ("part/17.json", b'{"caption": "a cat", "key": [1]}'),
    ]
    found = read(tmp_path, write_tar(tmp_path / "x.tar", members))
    assert [(sample.name, sample.image_id) for sample in found.samples] == [
        ("000000001.jpg", "000000001"),
        ("000000003.png", "000000003"),
        ("5.webp", "part/5"),
        ("9.jpg", "part/9"),
        ("13.jpg", "part/13"),
        ("16.jpg", 16),
        ("17.jpg", "part/17"),
    ]
    assert found.captions["000000001.jpg"] == ["a dog"] and found.captions["5.webp"] == ["Café tables"]
    assert found.captions["13.jpg"] == [("dog " * 2500).strip()]
    assert found.samples[4].data == b"first"
    bad = "the sample's .json cannot be used"
    assert found.reasons == {
        ("image", "000000002", "no image in the sample"),
        ("image", "000000004", "no caption"),
        ("image", "part/6", "no caption"),
        ("caption", "part/7", "caption is not UTF-8"),
        ("image", "part/7", "no caption"),
        ("image", "part/8", bad),
        ("caption", "part/10", "caption with half a surrogate pair"),
        ("image", "part/10", "no caption"),
        ("image", "part/11", bad),
        ("image", "part/12", bad),
        ("image", "part/13.jpg", "file that is twice in a sample"),
        ("image", "part/14", bad),
        ("image", "part/15", bad),
    }


def test_one_task_per_tar_of_a_folder_a_pattern_or_a_list_in_braces(tmp_path):
    folder = tmp_path / "in[1]"
    folder.mkdir()
    for number in range(3):
        write_img2dataset(folder / f"0000{number}.tar", [loaded(f"0000{number}0000", f"dog {number}")])
    escaped = str(folder).replace("[1]", "[[]1]")
    for pattern in (folder, f"{escaped}/*.tar", f"{escaped}/{{00000..00002}}.tar"):
        found = read(tmp_path, pattern, samples_per_shard=1)
        assert [task.name for task in found.tasks] == [str(folder / f"0000{number}.tar") for number in range(3)]
        assert [sample.captions for sample in found.samples] == [(f"dog {number}",) for number in range(3)]
        assert len(found.source) == 3 and list(found.source.tasks()) == found.tasks


def test_other_column(tmp_path):
    rows = [loaded("000000000", "web text", generated="a dog"), loaded("000000001", "web text", generated="")]
    tar = write_img2dataset(tmp_path / "00000.tar", rows)
    found = read(tmp_path, tar, caption_column="generated")
    assert found.captions == {"000000000.jpg": ["a dog"]}
    assert found.reasons == {("image", "000000001", "no caption")}
    bare = write_img2dataset(tmp_path / "00001.tar", rows, metas=False)
    assert read(tmp_path, bare, caption_column="generated").captions == {"000000000.jpg": ["a dog"]}


def test_keys_as_numbers(tmp_path):
    """As early versions of img2dataset wrote them, beside files of nine digits."""
    rows = [loaded("000000000", "a dog"), loaded("000000012", "a cat")]
    tar = write_img2dataset(tmp_path / "00000.tar", [row | {"key": int(row["key"])} for row in rows])
    write_tar(tar, [(f"{row['key']}.jpg", b"x") for row in rows])
    assert read(tmp_path, tar).captions == {"000000000.jpg": ["a dog"], "000000012.jpg": ["a cat"]}


def test_tar_of_which_nothing_was_downloaded(tmp_path):
    tar = write_img2dataset(tmp_path / "00000.tar", [ROWS[1]])
    assert read(tmp_path, tar).reasons == {MISSED[0]}
    tar.with_suffix(".parquet").unlink()
    assert read(tmp_path, tar).reasons == {("image", "00000.tar", "no sample in the tar")}


def cut(tar: Path, size: int) -> None:
    tar.write_bytes(tar.read_bytes()[:size])


def starts(tar: Path) -> list[int]:
    with tarfile.open(tar) as archive:
        return [member.offset for member in archive]


@pytest.mark.parametrize(
    ("place", "samples"), [("in a file", 1), ("in a header", 3), ("between two files", 3), ("between two samples", 2)]
)
def test_tar_that_breaks_off(tmp_path, place, samples):
    """The third sample is cut: its image is there before the second file and has its caption from the parquet file."""
    rows = [loaded(f"00000000{number}", f"dog {number}") for number in range(4)]
    tar = write_img2dataset(tmp_path / "00000.tar", rows)
    third = starts(tar)[6:9]
    cut(tar, {"in a file": third[0] + 700, "in a header": third[1] + 100,
              "between two files": third[1], "between two samples": third[0]}[place])  # fmt: skip
    (task,) = open_source(SourceSettings(shards=str(tar)), tmp_path).tasks()
    with pytest.raises(InputError) as caught:
        next(read_task(task, SourceSettings(shards=str(tar))))
    assert str(tar) in str(caught.value) and "breaks off" in str(caught.value)
    kept = read(tmp_path, tar, broken_tars="keep")
    assert kept.captions == {f"00000000{number}.jpg": [f"dog {number}"] for number in range(samples)}
    missing = {("image", row["key"], "not in the tar, which breaks off") for row in rows[len(kept.samples) :]}
    assert kept.reasons == {("image", "00000.tar", "tar breaks off"), *missing}


@pytest.mark.parametrize("content", [b"", b"no tar " * 500, gzip.compress(bytes(range(256)) * 50, mtime=0)[:100]])
def test_file_that_is_no_tar(tmp_path, content):
    good = write_img2dataset(tmp_path / "00000.tar", ROWS[:1])
    (tmp_path / "00001.tar").write_bytes(content)
    pattern = f"{tmp_path}/*.tar"
    refused(tmp_path, pattern, tmp_path / "00001.tar", "breaks off", "broken_tars=keep")
    found = read(tmp_path, pattern, broken_tars="keep")
    assert found.captions == {"000000000.jpg": ["a dog"]}
    assert found.reasons == {("image", "00001.tar", "tar breaks off")}
    assert good.exists()


def test_compressed_tar(tmp_path):
    tar = write_img2dataset(tmp_path / "00000.tar", ROWS[:1])
    content = gzip.compress(tar.read_bytes())
    tar.write_bytes(content)
    assert read(tmp_path, tar).captions == {"000000000.jpg": ["a dog"]}
    tar.write_bytes(content[: len(content) // 2])
    refused(tmp_path, tar, tar, "breaks off")


def test_tar_that_is_gone_is_never_taken_for_a_broken_one(tmp_path):
    tar = write_img2dataset(tmp_path / "00000.tar", ROWS)
    settings = SourceSettings(shards=str(tar), broken_tars="keep")
    (task,) = open_source(settings, tmp_path).tasks()
    tar.unlink()
    with pytest.raises(InputError, match=r"00000\.tar cannot be read"):
        list(read_task(task, settings))


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet PAR1"])
def test_broken_parquet_file(tmp_path, content):
    tar = write_img2dataset(tmp_path / "00000.tar", ROWS[:1])
    tar.with_suffix(".parquet").write_bytes(content)
    refused(tmp_path, tar, tar.with_suffix(".parquet"), "cannot be read")
    found = read(tmp_path, tar, broken_tars="keep")
    assert found.captions == {"000000000.jpg": ["a dog"]}
    assert found.reasons == {("image", "00000.parquet", "parquet file beside the tar cannot be read")}


def test_task_is_read_from_another_folder(tmp_path, monkeypatch):
    write_img2dataset(tmp_path / "00000.tar", ROWS[:2])
    monkeypatch.chdir(tmp_path)
    settings = SourceSettings(shards="*.tar")
    (task,) = open_source(settings, tmp_path).tasks()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    missed, sample = read_task(task, settings)
    assert isinstance(missed, Dropped) and sample.name == "000000000.jpg"
    assert json.loads(json.dumps(task.payload)) == task.payload


def test_stamp_is_of_the_tar_and_its_parquet_file(tmp_path):
    tar = write_img2dataset(tmp_path / "00000.tar", ROWS)
    write_img2dataset(tmp_path / "00001.tar", ROWS)

    def stamps() -> list[str]:
        return [task.stamp for task in open_source(SourceSettings(shards=f"{tmp_path}/*.tar"), tmp_path).tasks()]

    before = stamps()
    assert stamps() == before
    os.utime(tar, ns=(0, 5))
    touched = stamps()
    assert touched[0] != before[0] and touched[1] == before[1]
    os.utime(tar.with_suffix(".parquet"), ns=(0, 5))
    assert len({before[0], touched[0], stamps()[0]}) == 3
    tar.with_suffix(".parquet").unlink()
    assert stamps()[0] not in (before[0], touched[0])


def test_shards_of_this_program_are_refused(tmp_path):
    first, second = make_shards(tmp_path / "shards", [2, 2])
    refused(tmp_path, tmp_path / "shards", first, "annotated already")
    write_img2dataset(tmp_path / "00000.tar", ROWS)
    settings = SourceSettings(shards=f"{{{tmp_path / '00000.tar'},{second}}}")
    one, two = open_source(settings, tmp_path).tasks()
    assert len(list(read_task(one, settings))) == len(ROWS)
    with pytest.raises(InputError, match="annotated already"):
        list(read_task(two, settings))


def test_no_tars(tmp_path):
    refused(tmp_path, tmp_path / "*.tar", f"shards={tmp_path / '*.tar'} matches no file")
    refused(tmp_path, tmp_path, f"shards={tmp_path} holds no .tar")


def test_images_are_read_one_after_another(tmp_path):
    members = [(f"{number}.{suffix}", b"a" * 50_000) for number in range(5) for suffix in ("jpg", "txt")]
    tar = write_tar(tmp_path / "00000.tar", members)
    settings = SourceSettings(shards=str(tar))
    (task,) = open_source(settings, tmp_path).tasks()
    stream = read_task(task, settings)
    assert next(stream).name == "0.jpg"
    with tar.open("r+b") as file:  # what is not read yet is lost
        file.truncate(starts(tar)[6] + 1000)
    assert next(stream).name == "1.jpg"
    with pytest.raises(InputError, match="breaks off"):
        list(stream)
