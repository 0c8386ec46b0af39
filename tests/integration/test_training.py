"""Whole training runs, small: same seed, resume, two processes, bad samples."""

import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from simzss.commands import train as command
from simzss.commands.verbs import settings_of
from simzss.errors import InputError
from simzss.training.module import SimZSSModule
from tests.support.files import annotation, image_bytes, picture, write_tar
from tests.support.models import refused, save_bert
from tests.support.training import coloured_shards, logged, tiny_arguments, train

CACHED = ("data=cached", "backbone.feature_norm=center")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return coloured_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module", params=["stream", "cached"])
def finished(request, shards, tmp_path_factory):
    """Return an uninterrupted run and the extra overrides that made it."""
    extra = CACHED if request.param == "cached" else ("backbone.feature_norm=whiten",)
    output = tmp_path_factory.mktemp(request.param) / "run"
    train(shards, output, *extra)
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
    """By the file that the run has left, too."""
    output, extra = finished
    command.run(settings_of("train", {"output_dir": tmp_path / "again"}, output / "config.yaml"))
    assert logged(tmp_path / "again") == logged(output)
    train(shards, tmp_path / "other", *extra, "seed=1")
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
            train(shards, resumed, *extra)
    assert max(logged(resumed)) < 8
    with pytest.raises(InputError, match="holds a run already"):
        train(shards, resumed, *extra)
    train(shards, resumed, *extra, "resume=last")
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
    refused(lambda: train(shards, tmp_path / "run", *arguments), "does not fit")
    (tmp_path / "empty.ckpt").touch()
    for path in (output / "config.yaml", tmp_path / "empty.ckpt"):
        refused(lambda path=path: train(shards, tmp_path / "run", f"resume={path}"), f"resume={path} is no checkpoint")


def test_folder_of_a_run_without_loggers_is_known(shards, tmp_path):
    """By what is there from the first step on."""
    output = tmp_path / "run"
    train(shards, output, "logger=none", "trainer.epochs=1")
    assert {path.name for path in output.iterdir()} == {".lock", "config.yaml", "checkpoints", "model"}
    for folder in ("checkpoints", "model"):
        shutil.rmtree(output / folder)
    refused(lambda: train(shards, output, "logger=none"), f"output_dir={output} holds a run already (config.yaml)")


def test_micro_batches_change_nothing(finished, shards, tmp_path):
    output, extra = finished
    train(shards, tmp_path / "run", *extra, "trainer.micro_batch=3")
    whole, chunked = logged(output), logged(tmp_path / "run")
    assert chunked.keys() == whole.keys()
    for step, loss in whole.items():
        assert chunked[step] == pytest.approx(loss, rel=1e-3), step


@pytest.mark.parametrize("extra", [("data=cached",), ("data.num_workers=0",), ("data.num_workers=1",)])
def test_unreadable_images_are_counted_once_and_training_goes_on(shards, tmp_path, extra):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "shard-0.tar").write_bytes((shards / "shard-0.tar").read_bytes())
    members = [("broken.jpg", b"no image"), ("broken.json", annotation()), ("lonely.png", image_bytes(1))]
    write_tar(tmp_path / "bad" / "shard-1.tar", members)
    train(tmp_path / "bad", tmp_path / "run", *extra, "trainer.epochs=2")
    assert len(logged(tmp_path / "run")) == 4
    skipped = json.loads((tmp_path / "run" / "skipped.json").read_text())
    found = {record["key"]: (record["reason"], record["shard"].rpartition("/")[-1]) for record in skipped}
    assert found["broken"] == ("unreadable image: no known format", "shard-1.tar")
    assert found.keys() == {"broken", "lonely"} and len(skipped) == 2


def test_whitened_stream_in_bfloat16_tells_its_progress(shards, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("simzss.progress.SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    arguments = ("backbone.feature_norm=whiten", "trainer.precision=bf16-mixed", "trainer.epochs=2")
    train(shards, tmp_path / "run", *arguments, "trainer.progress_bar=true")
    assert all(0 < loss < 20 for loss in logged(tmp_path / "run").values())
    lines = [entry.getMessage() for entry in caplog.records if entry.getMessage().startswith("training: ")]
    assert lines[-1].startswith("training: 8 of 8, ") and "steps/s" in lines[-1]
    assert "epoch=1" in lines[-1] and "train/loss=" in lines[-1]


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("every", [1, 1000])
def test_run_that_diverges_ends_with_one_line(shards, tmp_path, every):
    """Every loss is looked at, or only the last one of the epoch."""
    output = tmp_path / "run"
    arguments = ("optim.lr=1e30", "optim.warmup=0", f"trainer.log_every_n_steps={every}")
    with pytest.raises(InputError, match=f"train/loss is not finite at step {2 if every == 1 else 4}: .*optim.lr"):
        train(shards, output, *arguments)
    assert not (output / "model").exists() and not (output / "checkpoints").exists()


def test_devices_that_lightning_refuses(shards, tmp_path):
    refused(lambda: train(shards, tmp_path / "run", "trainer.devices=0,7"), "trainer: ", "devices")


@pytest.fixture
def validated(tmp_path):
    """Return the overrides for a validation on one photo in the layout of PASCAL VOC."""
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    picture(size=(64, 64)).save(root / "JPEGImages" / "a.jpg")
    Image.fromarray(np.full((64, 64), 12, np.uint8)).save(root / "SegmentationClass" / "a.png")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    sizes = ("protocol.short_side=64", "protocol.crop_size=64", "protocol.stride=32", "protocol.templates=photo")
    return ("validation.benchmark=voc20", f"validation.root={root}", *sizes)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("protocol.templates=some", "some"),
        ("protocol.inference=slide protocol.crop_size=50", "50"),
        ("", "label 99"),
    ],
)
def test_wrong_validation_ends_before_the_first_epoch(shards, tmp_path, validated, override, says):
    if not override:
        Image.fromarray(np.full((64, 64), 99, np.uint8)).save(tmp_path / "voc" / "SegmentationClass" / "a.png")
    with pytest.raises(InputError, match=says):
        train(shards, tmp_path / "run", *validated, *override.split())
    assert not any(path.is_file() for path in (tmp_path / "run").rglob("*"))


def test_validation_leaves_the_dropout_of_a_pretrained_encoder_as_it_is(shards, tmp_path, validated):
    bert = save_bert(tmp_path / "bert")
    text = ["text=pretrained", f"text.weights={bert}", "text.context_length=16", "trainer.epochs=2"]
    for name, more in (("alone", ()), ("validated", validated)):
        arguments = [entry for entry in tiny_arguments(shards, tmp_path / name) if not entry.startswith("text")]
        command.run(settings_of("train", [*arguments, *text, *more]))
    assert logged(tmp_path / "validated") == logged(tmp_path / "alone")
    assert len(logged(tmp_path / "validated", "val/miou/voc20")) == 2


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Real DDP (gloo) through the command line; the second process never sees a concept."""
    shards = coloured_shards(tmp_path / "shards", without_concepts=range(16, 32))
    # More than the first process reads at a time, so that the second one has something to report as well.
    bad = [(f"{i}.{suffix}", data) for i in range(17) for suffix, data in (("jpg", b"no"), ("json", annotation()))]
    write_tar(shards / "shard-2.tar", bad)
    common = (*CACHED, "data.batch_size=32", "trainer.epochs=3")
    train(shards, tmp_path / "one", *common)
    arguments = tiny_arguments(shards, tmp_path / "two", *common, "trainer.devices=2")
    run = subprocess.run([sys.executable, "-m", "simzss", "train", *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    skipped = [json.loads((tmp_path / name / "skipped.json").read_text()) for name in ("one", "two")]
    assert len(skipped[1]) == 17 and skipped[1] == skipped[0]
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert two.keys() == one.keys()
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=1e-4), step
    expected = load_file(tmp_path / "one" / "model" / "model.safetensors")
    found = load_file(tmp_path / "two" / "model" / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
