"""Whole training runs, small: same seed, resume, two processes, bad samples."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from simzss.errors import InputError
from simzss.training.module import SimZSSModule
from simzss.training.run import train
from tests.support.files import annotation, image_bytes, write_tar
from tests.support.training import coloured_shards, logged, tiny_arguments, tiny_config

CACHED = ("data.cache=memory", "backbone.feature_norm=center")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return coloured_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module", params=["stream", "cached"])
def finished(request, shards, tmp_path_factory):
    """An uninterrupted run and the extra overrides that made it."""
    extra = CACHED if request.param == "cached" else ("backbone.feature_norm=whiten",)
    output = tmp_path_factory.mktemp(request.param) / "run"
    train(tiny_config(shards, output, *extra))
    return output, extra


def test_run_folder(finished):
    output, _ = finished
    for name in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt", "model/config.json", "model/model.safetensors"):
        assert (output / name).is_file(), name
    assert len(logged(output)) == 12  # 32 images, batches of 8, 3 epochs


def test_loss_falls(finished):
    losses = list(logged(finished[0]).values())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_same_seed_same_curve(finished, shards, tmp_path):
    output, extra = finished
    train(tiny_config(shards, tmp_path / "again", *extra))
    assert logged(tmp_path / "again") == logged(output)
    train(tiny_config(shards, tmp_path / "other", *extra, "seed=1"))
    assert logged(tmp_path / "other") != logged(output)


def test_resumed_equals_uninterrupted(finished, shards, tmp_path, monkeypatch):
    output, extra = finished
    start = SimZSSModule.on_train_epoch_start

    def crash(module):
        if module.current_epoch == 2:
            raise RuntimeError("power cut")
        start(module)

    resumed = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(SimZSSModule, "on_train_epoch_start", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tiny_config(shards, resumed, *extra))
    assert max(logged(resumed)) < 8
    with pytest.raises(InputError, match="holds a run already"):
        train(tiny_config(shards, resumed, *extra))
    train(tiny_config(shards, resumed, *extra, "resume=last"))
    assert logged(resumed) == logged(output)
    expected = load_file(output / "model" / "model.safetensors")
    found = load_file(resumed / "model" / "model.safetensors")
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def test_checkpoint_holds_the_trainable_part_only(finished):
    state = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state and not any(".backbone." in name for name in state)


def test_checkpoint_of_another_model_is_refused(finished, shards, tmp_path):
    output, extra = finished
    arguments = (*extra, f"resume={output}/checkpoints/last.ckpt", "text.layers=3")
    with pytest.raises(InputError, match="does not fit"):
        train(tiny_config(shards, tmp_path / "run", *arguments))
    with pytest.raises(InputError, match="is no checkpoint"):
        train(tiny_config(shards, tmp_path / "run", f"resume={output}/config.yaml"))


def test_micro_batches_change_nothing(finished, shards, tmp_path):
    output, extra = finished
    train(tiny_config(shards, tmp_path / "run", *extra, "trainer.micro_batch=3"))
    whole, chunked = logged(output), logged(tmp_path / "run")
    assert chunked.keys() == whole.keys()
    for step, loss in whole.items():
        assert chunked[step] == pytest.approx(loss, rel=1e-3), step


def test_unreadable_images_are_counted_and_training_goes_on(shards, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    good = (shards / "shard-0.tar").read_bytes()
    (bad / "shard-0.tar").write_bytes(good)
    write_tar(
        bad / "shard-1.tar",
        [("broken.jpg", b"no image"), ("broken.json", annotation()), ("lonely.png", image_bytes(1))],
    )
    output = tmp_path / "run"
    train(tiny_config(bad, output, "data.cache=memory"))
    assert (output / "model" / "config.json").is_file()
    skipped = json.loads((output / "skipped.json").read_text())
    assert {record["key"] for record in skipped} == {"broken", "lonely"}
    assert any("unreadable image" in record["reason"] for record in skipped)


def test_two_processes_train_as_one(tmp_path):
    """Real DDP (gloo) through the command line; the second process never sees a concept."""
    shards = coloured_shards(tmp_path / "shards", without_concepts=range(16, 32))
    common = (*CACHED, "data.batch_size=32", "trainer.epochs=3")
    train(tiny_config(shards, tmp_path / "one", *common))
    arguments = tiny_arguments(shards, tmp_path / "two", *common, "trainer.devices=2")
    run = subprocess.run([sys.executable, "-m", "simzss", "train", *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert two.keys() == one.keys()
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=1e-4), step
    expected = load_file(tmp_path / "one" / "model" / "model.safetensors")
    found = load_file(tmp_path / "two" / "model" / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
