"""Whole training runs, small: same seed, resume, two processes, bad samples."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image
from safetensors.torch import load_file

from simzss.config import compose
from simzss.errors import InputError
from simzss.training.module import SimZSSModule
from simzss.training.run import train
from tests.support.files import annotation, image_bytes, picture, write_tar
from tests.support.models import save_bert
from tests.support.training import coloured_shards, logged, tiny_arguments, tiny_config

CACHED = ("data=cached", "backbone.feature_norm=center")


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
    (tmp_path / "empty.ckpt").touch()
    for path in (output / "config.yaml", tmp_path / "empty.ckpt"):
        with pytest.raises(InputError, match=r"is no checkpoint: .") as caught:
            train(tiny_config(shards, tmp_path / "run", f"resume={path}"))
        assert "\n" not in str(caught.value)


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
    train(tiny_config(bad, output, "data=cached"))
    assert (output / "model" / "config.json").is_file()
    skipped = json.loads((output / "skipped.json").read_text())
    assert {record["key"] for record in skipped} == {"broken", "lonely"}
    assert any("unreadable image" in record["reason"] for record in skipped)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_image_in_a_stream_is_counted_once(shards, tmp_path, num_workers):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "shard-0.tar").write_bytes((shards / "shard-0.tar").read_bytes())
    shard = write_tar(tmp_path / "bad" / "shard-1.tar", [("broken.jpg", b"no image"), ("broken.json", annotation())])
    output = tmp_path / "run"
    train(tiny_config(tmp_path / "bad", output, f"data.num_workers={num_workers}", "trainer.epochs=2"))
    assert len(logged(output)) == 4
    reason = "unreadable image: no known format"
    assert json.loads((output / "skipped.json").read_text()) == [
        {"key": "broken", "reason": reason, "shard": str(shard)}
    ]


def test_whitened_stream_in_bfloat16(shards, tmp_path):
    arguments = ("backbone.feature_norm=whiten", "trainer.precision=bf16-mixed", "trainer.epochs=1")
    train(tiny_config(shards, tmp_path / "run", *arguments))
    assert all(0 < loss < 20 for loss in logged(tmp_path / "run").values())


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("every", [1, 1000])
def test_run_that_diverges_ends_with_one_line(shards, tmp_path, every):
    """Every loss is looked at, or only the last one of the epoch."""
    output = tmp_path / "run"
    arguments = ("optim.lr=1e30", "optim.warmup=0", f"trainer.log_every_n_steps={every}")
    with pytest.raises(InputError, match=f"train/loss is not finite at step {2 if every == 1 else 4}: .*optim.lr"):
        train(tiny_config(shards, output, *arguments))
    assert not (output / "model").exists() and not (output / "checkpoints").exists()


def test_devices_that_lightning_refuses(shards, tmp_path):
    with pytest.raises(InputError, match=r"trainer: .*devices") as caught:
        train(tiny_config(shards, tmp_path / "run", "trainer.devices=0,7"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rank", [0, 1])
def test_settings_are_written_by_one_process(shards, tmp_path, monkeypatch, rank):
    """As Lightning starts the others: by an environment variable, before there is a process group."""
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(rank_zero_only, "rank", rank)  # Lightning sets it for the whole process

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pytorch_lightning.Trainer.fit", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(shards, tmp_path / "run", "trainer.devices=2"))
    assert (tmp_path / "run" / "config.yaml").exists() == (rank == 0)


@pytest.fixture
def validated(tmp_path):
    """Overrides for a validation on one photo in the layout of PASCAL VOC."""
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
        train(tiny_config(shards, tmp_path / "run", *validated, *override.split()))
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_validation_leaves_the_dropout_of_a_pretrained_encoder_as_it_is(shards, tmp_path, validated):
    bert = save_bert(tmp_path / "bert")
    text = ["text=pretrained", f"text.weights={bert}", "text.context_length=16", "trainer.epochs=2"]
    for name, more in (("alone", ()), ("validated", validated)):
        arguments = [entry for entry in tiny_arguments(shards, tmp_path / name) if not entry.startswith("text")]
        train(compose("train", [*arguments, *text, *more]))
    assert logged(tmp_path / "validated") == logged(tmp_path / "alone")
    assert len(logged(tmp_path / "validated", "val/miou/voc20")) == 2


def test_two_processes_train_as_one(tmp_path):
    """Real DDP (gloo) through the command line; the second process never sees a concept."""
    shards = coloured_shards(tmp_path / "shards", without_concepts=range(16, 32))
    # More than the first process reads at a time, so that the second one has something to report as well.
    bad = [(f"{i}.{suffix}", data) for i in range(17) for suffix, data in (("jpg", b"no"), ("json", annotation()))]
    write_tar(shards / "shard-2.tar", bad)
    common = (*CACHED, "data.batch_size=32", "trainer.epochs=3")
    train(tiny_config(shards, tmp_path / "one", *common))
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
