import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simzss.atomic import partial_path
from simzss.data.images import decode_image
from simzss.data.shards import Skipped, read_shards, write_shard
from simzss.features import writer
from simzss.features.folder import FeatureFolder
from simzss.features.quantise import bytes_per_image
from simzss.features.views import Views
from tests.support.caching import (
    FILE_MB,
    SIZES,
    copied,
    file_size_limit,
    jpeg_sample,
    jpeg_shards,
    make_cache,
    stored_tensors,
)
from tests.support.files import PIPELINE, contents
from tests.support.models import make_backbone, refused


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return jpeg_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A cache made without disturbance."""
    output = tmp_path_factory.mktemp("whole") / "cache"
    make_cache(shards, output)
    return output


def index(folder):
    return json.loads((folder / "index.json").read_text())


@pytest.mark.parametrize(
    ("storage", "tolerance", "options"),
    [
        ("float32", {"rtol": 1e-4, "atol": 1e-5}, {"file_mb": 10.0}),
        ("bfloat16", {"rtol": 1e-2, "atol": 1e-3}, {"views": 3, "min_crop": 0.4, "seed": 5}),
        ("int8", {"rtol": 1e-2, "atol": 1e-3}, {"views": 3, "min_crop": 0.4, "seed": 5}),
    ],
)
def test_features_are_those_of_the_photos(shards, tmp_path, storage, tolerance, options):
    backbone = make_backbone()
    make_cache(shards, tmp_path / "c", storage=storage, **options)
    views = Views(64, options.get("views", 1), options.get("min_crop", 0.9), options.get("seed", 0))
    samples = {sample.key: sample for sample in read_shards(shards)}
    found = stored_tensors(tmp_path / "c")
    assert found.keys() == samples.keys() and len(found) == sum(SIZES)
    for key, sample in samples.items():
        pictures = views.make(decode_image(sample.image, views.min_side), Path(sample.shard).name, key)
        expected = backbone(pictures)
        torch.testing.assert_close(found[key]["cls"].float(), expected.cls, **tolerance)
        if storage == "int8":
            patches = found[key]["patches"].double() * found[key]["scale"].double()[..., None]
            step = expected.patches.double().abs().amax(dim=-1, keepdim=True) / 127
            assert ((patches - expected.patches.double()).abs() <= step * 0.51 + 1e-5).all()
        else:
            torch.testing.assert_close(found[key]["patches"].float(), expected.patches, **tolerance)


def test_index_and_texts(whole, shards):
    found = index(whole)
    assert (found["images"], found["complete"], found["skipped"]) == (18, True, [])
    assert [file["images"] for file in found["files"]] == [4, 4, 2, 3, 4, 1]
    assert [shard["name"] for shard in found["shards"]] == [Path(url).name for url in shards]
    assert [shard["images"] for shard in found["shards"]] == [10, 3, 5]
    captions = {sample.key: [c.to_json() for c in sample.captions] for sample in read_shards(shards)}
    stored = {}
    for file in found["files"]:
        assert (whole / file["name"]).stat().st_size == file["bytes"]
        texts = json.loads(load_file(whole / file["name"])["texts"].numpy().tobytes())
        assert texts["skipped"] == []
        stored |= dict(texts["images"])
    assert stored == captions


def test_files_hold_what_is_asked_for(whole):
    one = bytes_per_image("bfloat16", 1, 16, 64)
    for file in index(whole)["files"]:
        tensors = load_file(whole / file["name"])
        assert sum(tensors[name].nbytes for name in ("cls", "patches")) == file["images"] * one <= FILE_MB * 1e6


def test_one_image_is_the_least(shards, tmp_path):
    make_cache(shards[1:2], tmp_path / "c", file_mb=1e-6)
    assert [file["images"] for file in index(tmp_path / "c")["files"]] == [1, 1, 1]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_no_byte(shards, whole, tmp_path, num_workers):
    make_cache(shards, tmp_path / "c", num_workers=num_workers)
    assert contents(tmp_path / "c") == contents(whole)


def test_again_touches_nothing(shards, tmp_path, caplog):
    target = tmp_path / "c"
    with caplog.at_level(logging.INFO):
        make_cache(shards, target)
    assert "features of 18 images with tiny (32-true, bfloat16, 4 x 4 patches, views: 1)" in caplog.text
    assert "features of 18 images, 0.0 MB, in " in caplog.text.splitlines()[-1]
    times = {path: path.stat().st_mtime_ns for path in target.glob("*.safetensors")}
    before = contents(target)
    with caplog.at_level(logging.INFO):
        assert make_cache(shards, target).images == 18
    assert "3 of 3 shards are finished already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in target.glob("*.safetensors")} == times
    assert contents(target) == before


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize("after", range(6))
def test_broken_off_after_any_file_it_goes_on(shards, whole, tmp_path, monkeypatch, after):
    """By an error in place of a signal: at every file in turn."""
    written = []
    write = writer.write_features

    def fails(path, *rest):
        if len(written) == after:
            partial_path(path).write_bytes(b"half")
            raise PowerCutError
        written.append(path.name)
        return write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_features", fails)
        patch.setattr(writer, "PENDING", 1)
        with pytest.raises(PowerCutError):
            make_cache(shards, tmp_path / "c")
    before = {name: (tmp_path / "c" / name).stat().st_mtime_ns for name in written}
    assert not (tmp_path / "c" / "index.json").exists()
    make_cache(shards, tmp_path / "c")
    assert contents(tmp_path / "c") == contents(whole)
    assert {name: (tmp_path / "c" / name).stat().st_mtime_ns for name in written} == before


@pytest.mark.parametrize("lost", ["index", "marker", "record", "file", "records", "half a record", "stray file"])
def test_what_is_missing_is_made_again(shards, whole, tmp_path, lost):
    target = copied(whole, tmp_path / "c")
    folder = FeatureFolder(target)
    paths = {
        "index": [folder.index],
        "marker": [folder.record(0)],
        "record": [folder.chunk_record(0, 1)],
        "file": [folder.result(0, 1)],
        "records": [folder.chunk_record(0, chunk) for chunk in range(3)],
    }
    for path in paths.get(lost, []):
        path.unlink()
    if lost == "half a record":
        folder.chunk_record(0, 1).write_text('{"part": 1')
    if lost == "stray file":
        folder.record(0).unlink()
        folder.result(0, 7).write_bytes(b"of a run with another file_mb")
    make_cache(shards, target)
    assert contents(target) == contents(whole)


def test_corrupted_file_is_named_and_alone_made_again(shards, whole, tmp_path, caplog):
    target = copied(whole, tmp_path / "c")
    path = target / "features-000000-001.safetensors"
    others = {p: p.stat().st_mtime_ns for p in target.glob("*.safetensors") if p != path}
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    make_cache(shards, target)
    (said,) = [record.getMessage() for record in caplog.records if "is corrupted" in record.getMessage()]
    assert str(path) in said and "is made again" in said and "\n" not in said
    assert contents(target) == contents(whole)
    assert {p: p.stat().st_mtime_ns for p in others} == others


def test_another_file_size_goes_on(shards, whole, tmp_path):
    """Finished shards keep their files; no chunk of an unfinished one is of another size."""
    target = copied(whole, tmp_path / "c")
    FeatureFolder(target).record(0).unlink()
    make_cache(shards, target, file_mb=0.02)
    assert [file["images"] for file in index(target)["files"]] == [9, 1, 3, 4, 1]
    assert list(stored_tensors(target)) == [f"{i:09d}" for i in range(18)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"storage": "int8"}, "storage was bfloat16 and is int8"),
        ({"views": 2}, "transform.views was 1 and is 2"),
        ({"backbone": {"name": "other"}}, "backbone.name was tiny and is other"),
        ({"backbone": {"image_size": 96}}, "grid was [4, 4] and is [6, 6]"),
        ({"precision": "bf16-mixed"}, "precision was 32-true and is bf16-mixed"),
    ],
)
def test_features_of_another_kind_are_not_mixed(shards, whole, tmp_path, change, says):
    target = copied(whole, tmp_path / "c")
    options = {key: make_backbone(**value) if key == "backbone" else value for key, value in change.items()}
    refused(lambda: make_cache(shards, target, **options), f"output={target}", says)
    assert contents(target) == contents(whole)


def test_a_shard_that_changed_is_named(shards, whole, tmp_path):
    again = jpeg_shards(tmp_path / "shards")
    write_shard(Path(again[1]), [jpeg_sample(77)], PIPELINE)
    target = copied(whole, tmp_path / "c")
    refused(lambda: make_cache(again, target), again[1], str(target), "number 1")
    refused(lambda: make_cache([again[2], *again[:2]], target), again[2], "number 0")
    Path(again[1]).unlink()
    refused(lambda: make_cache(again, target), again[1], "cannot be read")
    assert contents(target) == contents(whole)


def test_more_shards_are_added_and_fewer_refused(shards, whole, tmp_path):
    make_cache(shards[:2], tmp_path / "c")
    assert index(tmp_path / "c")["images"] == 13
    make_cache(shards, tmp_path / "c")
    assert contents(tmp_path / "c") == contents(whole)
    refused(lambda: make_cache(shards[:2], tmp_path / "c"), "3 shards", "gives 2")
    assert contents(tmp_path / "c") == contents(whole)


def test_what_cannot_be_read_is_counted(tmp_path, caplog):
    urls = jpeg_shards(tmp_path / "shards", (10, 4, 5), broken=(0, 1, 2, 3, 6, 12))
    break_off_jpeg(urls[2], "000000017")  # and with it the one before, as in training
    for turn in range(2):  # the second time from what the first left
        summary = make_cache(urls, tmp_path / "c", num_workers=turn)
        reason = "unreadable image: no known format"
        expected = [Skipped(f"{i:09d}", reason, "shard-000000.tar") for i in (0, 1, 2, 3, 6)]
        expected.append(Skipped("000000012", reason, "shard-000001.tar"))
        assert list(summary.skipped[:6]) == expected
        assert len(summary.skipped) == 7 and summary.skipped[6].key == "shard-000002.tar"
        assert summary.skipped[6].reason.startswith("unreadable tar: ")
        assert list(stored_tensors(tmp_path / "c")) == [f"{i:09d}" for i in (4, 5, 7, 8, 9, 10, 11, 13, 14, 15)]
        assert list(summary.skipped) == [
            Skipped(entry["key"], entry["reason"], entry["shard"]) for entry in index(tmp_path / "c")["skipped"]
        ]
        # The first four records of the first shard hold no image: a chunk without a file.
        assert [file["name"][9:19] for file in index(tmp_path / "c")["files"]][:2] == ["000000-001", "000000-002"]
    assert "skipped 7 samples (6 x unreadable image, 1 x unreadable tar)" in caplog.text


def break_off_jpeg(url, key):
    data = Path(url).read_bytes()
    Path(url).write_bytes(data[: data.index(f"{key}.jpg".encode()) + 700])


def test_a_tar_that_is_gone_is_tried_again(tmp_path, whole):
    urls = jpeg_shards(tmp_path / "shards")
    away = Path(urls[1]).rename(tmp_path / "away.tar")
    summary = make_cache(urls, tmp_path / "c")
    assert (summary.images, [entry.key for entry in summary.skipped]) == (15, ["shard-000001.tar"])
    away.rename(urls[1])
    assert make_cache(urls, tmp_path / "c").skipped == ()
    assert contents(tmp_path / "c") == contents(whole)


def test_no_readable_image(tmp_path):
    urls = jpeg_shards(tmp_path / "shards", (3,), broken=range(3))
    refused(lambda: make_cache(urls, tmp_path / "c"), "no readable image")
    assert not (tmp_path / "c").exists()


def test_full_disk(shards, whole, tmp_path):
    """Files of three images fit, larger ones do not."""
    sizes = [file["bytes"] for file in index(whole)["files"]]
    with file_size_limit(sizes[3] + 1):
        message = refused(lambda: make_cache([shards[1], shards[0]], tmp_path / "c"), "features-000001-00")
    assert "File too large" in message and "goes on" in message
    assert [path.name for path in sorted((tmp_path / "c").glob("[!.]*"))] == ["features-000000-000.safetensors"]
    assert not [name for name in contents(tmp_path / "c") if "partial" in name]
    make_cache([shards[1], shards[0]], tmp_path / "c")
    make_cache([shards[1], shards[0]], tmp_path / "undisturbed")
    assert contents(tmp_path / "c") == contents(tmp_path / "undisturbed")


def test_full_disk_from_the_start_leaves_nothing(shards, tmp_path):
    with file_size_limit(2000):
        refused(lambda: make_cache(shards, tmp_path / "c"), "File too large")
    assert not (tmp_path / "c").exists()
