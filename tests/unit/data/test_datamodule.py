import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from simzss.data.datamodule import CaptionDataModule
from simzss.data.shards import Skipped, write_shard
from simzss.errors import InputError
from tests.support.files import PIPELINE, annotation, break_off, caption, image_bytes, make_shards, sample, write_tar
from tests.support.models import scratch_model

CPU = torch.device("cpu")


def make_data(shards: list[str] | str, **changes) -> CaptionDataModule:
    """Not set up yet."""
    options = {"batch_size": 4, "num_workers": 0, "cache": "memory", "cache_dir": None, "shuffle": 10, "min_crop": 0.9}
    options |= {"norm_images": 16, "seed": 0, "precision": "32-true"} | changes
    data = CaptionDataModule(scratch_model(), None, shards=shards, **options)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=CPU), current_epoch=0)
    return data


def texts(data: CaptionDataModule) -> list[str]:
    data.setup("fit")
    return [captions[0].text for captions in data.features.captions]


def never(*_):
    raise AssertionError("features are computed")


def test_features_are_kept_from_run_to_run(tmp_path, monkeypatch):
    shards = make_shards(tmp_path / "s", [3, 2])
    write_tar(tmp_path / "s" / "bad.tar", [("no.png", b"no image"), ("no.json", annotation())])
    shards.append(str(tmp_path / "s" / "bad.tar"))
    first = make_data(shards, cache_dir=str(tmp_path / "kept"))
    first.setup("fit")
    monkeypatch.setattr(CaptionDataModule, "_compute_features", never)
    second = make_data(shards, cache_dir=str(tmp_path / "kept"))
    assert texts(second) == [f"dog number {i}" for i in range(5)]
    assert torch.equal(second.features.patches, first.features.patches)
    # What could not be read then is known of this run too.
    assert list(second.skipped) == list(first.skipped)
    assert [(record.key, record.shard) for record in second.skipped] == [("no", shards[-1])]


def test_changed_captions_of_the_same_length_are_noticed(tmp_path):
    for word in ("dog", "cat"):
        write_shard(tmp_path / "s.tar", [sample(0, [caption(word)])], PIPELINE)
        assert texts(make_data(str(tmp_path / "s.tar"), cache_dir=str(tmp_path / "kept"))) == [word]


def test_key_of_the_kept_file_covers_all_that_it_depends_on(tmp_path, monkeypatch):
    (shard,) = make_shards(tmp_path, [2])
    data = make_data(shard)
    keys = {data._fingerprint()}
    backbone = data.backbone
    changes = {"fingerprint": "x", "timm_name": "x", "features": "value", "project": True, "image_size": 32}
    changes |= {"mean": backbone.mean + 1, "std": backbone.std + 1}
    for name, value in changes.items():
        data.backbone = SimpleNamespace(**{key: getattr(backbone, key) for key in changes} | {name: value})
        keys.add(data._fingerprint())
    data.backbone = backbone
    monkeypatch.setattr("simzss.data.datamodule.CACHE_VERSION", -1)
    keys |= {data._fingerprint(), make_data(shard, precision="bf16-mixed")._fingerprint()}
    assert len(keys) == 1 + len(changes) + 2


def test_features_of_a_tar_that_breaks_off(tmp_path):
    """It has no index; what is whole in it is used."""
    shards = make_shards(tmp_path, [3, 40])
    break_off(shards[1], "000000030")
    data = make_data(shards)
    assert len(texts(data)) >= 29
    assert [record.key for record in data.skipped] == ["shard-000001.tar"]


@pytest.mark.parametrize("samples", [1, 500])
def test_features_of_shards_with_a_stale_index(tmp_path, samples):
    shards = make_shards(tmp_path, [20, 20])
    listed = [{"name": Path(shard).name, "samples": samples} for shard in shards]
    (tmp_path / "index.json").write_text(json.dumps({"shards": listed}), encoding="utf-8")
    assert texts(make_data(shards)) == [f"dog number {i}" for i in range(40)]


@pytest.mark.parametrize("failed", [{"in.tar": "No space left on device"}, {}])
def test_shards_of_failed_tasks_are_named_once(tmp_path, caplog, failed):
    shards = make_shards(tmp_path, [2, 2])
    listed = [{"name": Path(shard).name, "samples": 2} for shard in shards]
    record = {"complete": not failed, "failed": failed, "shards": listed}
    (tmp_path / "index.json").write_text(json.dumps(record), encoding="utf-8")
    assert len(texts(make_data(shards))) == 4
    said = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    assert len(said) == len(failed) and all(f"{tmp_path} (failed tasks: 1)" in line for line in said)


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_folder_that_cannot_keep_features_is_refused_first(tmp_path, monkeypatch, folder):
    shards = make_shards(tmp_path / "s", [2])
    (tmp_path / "file").touch()
    monkeypatch.setattr(CaptionDataModule, "_compute_features", never)
    with pytest.raises(InputError, match=rf"data\.cache_dir={tmp_path / folder} ") as caught:
        make_data(shards, cache_dir=str(tmp_path / folder)).setup("fit")
    assert "\n" not in str(caught.value)


def test_full_disk_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    shards = make_shards(tmp_path / "s", [2])

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("simzss.data.features.save_file", full)
    assert len(texts(make_data(shards, cache_dir=str(tmp_path / "kept")))) == 2
    assert "No space left on device" in caplog.text


def test_sample_that_is_met_again_is_noted_once(tmp_path):
    data = make_data(make_shards(tmp_path, [2]))
    for _ in range(3):  # epochs
        data.on_skipped((Skipped("0", "no caption", "a.tar"), Skipped("0", "no caption", "b.tar")))
    assert [record.shard for record in data.skipped] == ["a.tar", "b.tar"]


def test_statistics_of_a_stream_come_from_any_shard(tmp_path):
    """And from the same ones for the same seed."""
    images = [image_bytes(shard) for shard in range(5)]
    for shard, image in enumerate(images):
        write_shard(tmp_path / f"{shard}.tar", [sample(i, image=image) for i in range(16)], PIPELINE)

    def first(seed: int) -> torch.Tensor:
        (block,) = make_data(f"{tmp_path}/*.tar", cache="none", seed=seed).feature_batches(CPU)
        return block.cls[0]

    assert torch.equal(first(0), first(0))
    assert len({tuple(first(seed).tolist()) for seed in range(5)}) > 1
