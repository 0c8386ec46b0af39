"""Settings of the trainer, and what is refused before anything is loaded."""

from types import SimpleNamespace

import pytest
import torch

from simzss.commands.verbs import settings_of
from simzss.training.module import SimZSSModule
from simzss.training.settings import OptimSettings, TrainerSettings
from simzss.training.trainer import build_trainer, start_trainer
from tests.support.models import refused

NAN = float("nan")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("devices", value) for value in (0, -2, "many", "", "0,", "-1,2")),
        *(("max_steps", value) for value in (0, -2)),
        *(("epochs", value) for value in (0, -1)),
        ("accelerator", "tpu"),
        ("micro_batch", 0),
    ],
)
def test_trainer_that_no_run_can_use(key, value):
    refused(lambda: TrainerSettings(**{key: value}), f"{key}={value}")


@pytest.mark.parametrize("value", [1, 8, -1, "auto", "0,1", "0, 2", "3"])
def test_devices(value):
    expected = {"3": 3, "0, 2": "0,2"}.get(value, value)
    assert TrainerSettings(devices=value).devices == expected


@pytest.mark.parametrize("betas", [[0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, NAN], ["a", 0.9], [0.9] * 3])
def test_betas_that_no_run_can_use(betas):
    refused(lambda: OptimSettings(betas=betas), "betas")


@pytest.mark.parametrize(
    ("device", "accelerator", "known"),
    [("cpu", "gpu", False), ("cpu", "cuda", False), ("cuda", "mps", False), ("cuda", "cpu", True)],
)
def test_accelerator_that_is_not_there(device, accelerator, known, monkeypatch, tmp_path):
    monkeypatch.setattr("simzss.training.trainer.best_device", lambda: torch.device(device))
    settings = TrainerSettings(accelerator=accelerator, devices=1)
    if known:
        build_trainer(settings, [], tmp_path, "32-true")
    else:
        refused(lambda: build_trainer(settings, [], tmp_path, "32-true"), f"trainer.accelerator={accelerator}", device)


def test_every_seed_seeds_every_epoch():
    """Seed, epoch and rank make one number, which torch takes up to 64 bits of."""
    drawn = set()
    for seed in (0, 1, 2**32 - 1):
        for epoch in (0, 1, 999):
            SimZSSModule.on_train_epoch_start(SimpleNamespace(seed=seed, current_epoch=epoch))
            drawn.add(torch.rand(()).item())
    assert len(drawn) == 9


def started(tmp_path, *overrides: str):
    arguments = ["data.shards=x", "trainer.accelerator=cpu", f"output_dir={tmp_path}", *overrides]
    return start_trainer(settings_of("train", arguments))


@pytest.mark.parametrize(("precision", "products"), [("bf16-mixed", "high"), ("32-true", "highest")])
def test_float32_products_of_a_run_in_mixed_precision(precision, products, tmp_path):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        started(tmp_path, f"trainer.precision={precision}")
        assert torch.get_float32_matmul_precision() == products
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("choice", "classes"),
    [
        ("csv", ["ResumableCSVLogger"]),
        ("none", []),
        ("tensorboard", ["TensorBoardLogger"]),
        ("[csv,tensorboard]", ["ResumableCSVLogger", "TensorBoardLogger"]),
    ],
)
def test_loggers_of_a_run(choice, classes, tmp_path):
    assert [type(logger).__name__ for logger in started(tmp_path, f"logger={choice}").trainer.loggers] == classes


@pytest.mark.parametrize("extra", ["tensorboard", "wandb"])
def test_logger_whose_package_is_missing_is_named_before_anything_is_loaded(extra, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(lambda: started(tmp_path, f"logger=[csv,{extra}]"), f"logger={extra} ", f"pip install 'simzss[{extra}]'")
