import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from simzss.data.shards import Skipped, write_shard
from simzss.training.data.streamed import StreamDataModule
from simzss.training.settings import StreamSettings
from tests.support.files import PIPELINE, image_bytes, make_shards, sample
from tests.support.models import refused, scratch_model


def make_data(shards: list[str] | str, seed: int = 0, **changes) -> StreamDataModule:
    """Make one that is not set up yet."""
    settings = StreamSettings(**{"shards": shards, "batch_size": 4, "num_workers": 0, "shuffle": 10} | changes)
    data = StreamDataModule(scratch_model(), None, settings.replace(norm_images=16), seed=seed, micro_batch=None)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), current_epoch=0)
    return data


@pytest.mark.parametrize("failed", [{"in.tar": "No space left on device"}, {}])
def test_shards_of_failed_tasks_are_named_once(tmp_path, caplog, failed):
    shards = make_shards(tmp_path, [2, 2])
    listed = [{"name": Path(shard).name, "samples": 2} for shard in shards]
    record = {"complete": not failed, "failed": failed, "shards": listed}
    (tmp_path / "index.json").write_text(json.dumps(record), encoding="utf-8")
    make_data(shards).setup("fit")
    said = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    assert len(said) == len(failed) and all(f"{tmp_path} (failed tasks: 1)" in line for line in said)


def test_sample_that_is_met_again_is_noted_once(tmp_path):
    data = make_data(make_shards(tmp_path, [2]))
    skipped = (Skipped("0", "no caption", "a.tar"), Skipped("0", "no caption", "b.tar"))
    for _ in range(3):  # epochs
        data.on_before_batch_transfer(SimpleNamespace(skipped=skipped), 0)
    assert [record.shard for record in data.skipped] == ["a.tar", "b.tar"]


def test_statistics_of_a_stream_come_from_any_shard(tmp_path):
    """And from the same ones for the same seed."""
    images = [image_bytes(shard) for shard in range(5)]
    for shard, image in enumerate(images):
        write_shard(tmp_path / f"{shard}.tar", [sample(i, image=image) for i in range(16)], PIPELINE)

    def first(seed: int) -> torch.Tensor:
        (block,) = make_data(f"{tmp_path}/*.tar", seed=seed).feature_batches()
        return block.cls[0]

    assert torch.equal(first(0), first(0))
    assert len({tuple(first(seed).tolist()) for seed in range(5)}) > 1


def test_an_epoch_has_the_steps_that_its_captions_fill(tmp_path):
    shards = make_shards(tmp_path, [11])
    assert make_data(shards).steps_per_epoch == 2
    assert make_data(shards, captions_per_image=2).steps_per_epoch == 5
    assert make_data(shards, batch_size=40).steps_per_epoch == 1
    loader = make_data(shards).train_dataloader()
    assert len(loader) == len(list(loader)) == 2


@pytest.mark.parametrize("captions_per_image", [1, 2, 4])
def test_an_image_is_there_once_for_its_captions(tmp_path, captions_per_image):
    data = make_data(make_shards(tmp_path, [11]), captions_per_image=captions_per_image)
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 4 and len(batch.images) == 4 // captions_per_image
    if captions_per_image > 1:
        assert batch.image_index.bincount().tolist() == [captions_per_image] * len(batch.images)


def test_captions_of_an_image_must_divide_the_batch(tmp_path):
    data = make_data(make_shards(tmp_path, [2]), captions_per_image=3)
    refused(lambda: data.setup("fit"), "data.captions_per_image=3", "4 captions")


def test_no_sample(tmp_path):
    write_shard(tmp_path / "empty.tar", [], PIPELINE)
    refused(lambda: make_data(str(tmp_path / "empty.tar")), "data.shards=", "empty.tar holds no sample")
