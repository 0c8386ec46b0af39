import copy
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from simzss.config import compose, to_plain
from simzss.training.module import SimZSSModule
from simzss.training.run import check_settings
from simzss.training.trainer import start_trainer
from tests.support.models import refused


@cache
def settings(text: str) -> dict:
    return to_plain(compose("train", [f"text={text}", "data.shards=x"]))


def changed(key: str, value, text: str = "clip_small") -> dict:
    plain = copy.deepcopy(settings(text))
    group, _, name = key.rpartition(".")
    (plain[group] if group else plain)[name] = value
    return plain


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("seed", value) for value in (-1, 2**32)),
        *(("trainer.accelerator", value) for value in ("", "cuba", "tpu")),
        *(("trainer.devices", value) for value in (0, -2, "many", "", "0,", "-1,2")),
        *(("trainer.max_steps", value) for value in (0, -2)),
        *(("trainer.epochs", value) for value in (0, -1)),
        *(("optim.lr", value) for value in (-1e-3, NAN, INFINITY)),
        *(("optim.betas", value) for value in ([0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, NAN], ["a", 0.9], [0.9] * 3)),
        *(("optim.eps", value) for value in (-1e-9, NAN)),
        *(("optim.weight_decay", value) for value in (-0.1, NAN)),
        *(("optim.warmup", value) for value in (-0.1, 1.5, NAN)),
        *(("data.min_crop", value) for value in (0.0, -0.5, 1.1, NAN)),
        *(("text.width", value) for value in (0, -64)),
        *(("text.layers", value) for value in (0, -1)),
        *(("text.context_length", value) for value in (0, 2)),
        *(("loss.concept_temperature", value) for value in (0.0, -0.1, NAN, INFINITY)),
        *(("loss.pool_temperature", value) for value in (0.0, NAN)),
        *(("loss.concept_weight", value) for value in (-1.0, NAN)),
    ],
)
def test_value_that_no_run_can_use(key, value):
    refused(lambda: check_settings(changed(key, value)), f"{key}={value} ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2**32 - 1),
        *(("trainer.devices", value) for value in (1, 8, -1, "auto", "0,1", "0, 2")),
        *(("trainer.max_steps", value) for value in (-1, 1)),
        ("trainer.accelerator", "cpu"),
        ("optim.lr", 0.0),
        ("optim.betas", [0, 0.999]),
        ("data.min_crop", 1.0),
        ("loss.concept_weight", 0.0),
    ],
)
def test_value_at_the_limit(key, value):
    check_settings(changed(key, value))


def test_text_encoder_without_the_keys_of_another():
    check_settings(changed("text.weights", "x", "pretrained"))
    refused(lambda: check_settings(changed("text.context_length", 1, "pretrained")), "text.context_length=1 ")


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_accelerator_that_is_not_there(accelerator, monkeypatch):
    monkeypatch.setattr("simzss.training.trainer.best_device", lambda: torch.device("cpu"))
    refused(lambda: check_settings(changed("trainer.accelerator", accelerator)), accelerator, "not available", "cpu")


@pytest.mark.parametrize(("device", "accelerator"), [("cuda", "cuda"), ("cuda", "gpu"), ("mps", "mps"), ("mps", "gpu")])
def test_accelerator_that_is_there(device, accelerator, monkeypatch):
    monkeypatch.setattr("simzss.training.trainer.best_device", lambda: torch.device(device))
    check_settings(changed("trainer.accelerator", accelerator))


def test_every_seed_seeds_every_epoch():
    """Seed, epoch and rank make one number, which torch takes up to 64 bits of."""
    drawn = set()
    for seed in (0, 1, 2**32 - 1):
        for epoch in (0, 1, 999):
            SimZSSModule.on_train_epoch_start(SimpleNamespace(seed=seed, current_epoch=epoch))
            drawn.add(torch.rand(()).item())
    assert len(drawn) == 9


@pytest.mark.parametrize(("precision", "products"), [("bf16-mixed", "high"), ("32-true", "highest")])
@pytest.mark.parametrize(("root", "more"), [("train", "data.shards=x"), ("train_masks", "experiment=mrovseg_cpu")])
def test_float32_products_of_a_run_in_mixed_precision(root, more, precision, products, tmp_path):
    wanted = [more, f"trainer.precision={precision}", "trainer.accelerator=cpu", f"output_dir={tmp_path}"]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        start_trainer(to_plain(compose(root, wanted)))
        assert torch.get_float32_matmul_precision() == products
    finally:
        torch.set_float32_matmul_precision(before)
