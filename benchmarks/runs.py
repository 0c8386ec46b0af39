"""Training runs as `simzss train` makes them, with callbacks that hold a watch."""

import logging
import resource
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from simzss import config as conf
from simzss.device import allocator, allow_rounded_products, best_device, resolve_precision
from simzss.models.simzss import SimZSS
from simzss.training.data.datamodule import CaptionData
from simzss.training.module import SimZSSModule
from simzss.training.run import build_bank, build_data, build_model, build_module, check_settings
from simzss.training.trainer import build_trainer

NEVER = 1_000_000


@dataclass
class Run:
    """What a run is made of."""

    plain: dict[str, Any]
    precision: str
    module: SimZSSModule
    data: CaptionData
    trainer: pl.Trainer

    def fit(self) -> None:
        """Train."""
        with matmul_precision(self.precision):
            self.trainer.fit(self.module, datamodule=self.data)


def make_run(
    overrides: Sequence[str],
    output: Path,
    callbacks: Sequence[pl.Callback] = (),
    model: SimZSS | None = None,
    kind: type[SimZSSModule] = SimZSSModule,
) -> Run:
    """The run of a configuration, without checkpoints.

    Args:
        overrides: of `conf/train.yaml`.
        output: gets a folder of its own with the logs of the run.
        callbacks: of the trainer.
        model: a model of this configuration, to save the time of making one.
        kind: of the module.
    """
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for noisy in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero", "timm"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    output = output / f"run-{time.monotonic_ns()}"
    quiet = ["trainer.progress_bar=false", f"trainer.checkpoint_every_n_epochs={NEVER}", f"trainer.epochs={NEVER}"]
    plain: dict[str, Any] = conf.to_plain(conf.compose("train", [*overrides, *quiet, f"output_dir={output}"]))
    check_settings(plain)
    device = torch.device("cpu") if plain["trainer"]["accelerator"] == "cpu" else best_device()
    precision = resolve_precision(plain["trainer"]["precision"], device)
    trainer = build_trainer(plain["trainer"], output, precision, callbacks)
    if model is None:
        model = build_model(plain["backbone"], plain["text"], plain["seed"])
    model.backbone.use_precision(precision)
    bank = build_bank(plain["concepts"])
    data = build_data(plain, model, bank, precision)
    module = build_module(plain, model, bank, kind)
    if plain["trainer"]["compile"]:
        model.text_encoder.compile_body()
    return Run(plain, precision, module, data, trainer)


class StepTimes(pl.Callback):
    """Seconds of the first step, with all that comes before it, and of the others together.

    The device is waited for after the first and after the last step only: within, batches are prefetched as ever.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.training = self.first = self.last = 0.0
        self.steps = 0
        self.peak_memory = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All is ready, but no batch."""
        synchronise(pl_module.device)
        self.training = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Take the time after the first step, and after the last."""
        self.steps = trainer.global_step
        if self.steps in (1, trainer.max_steps):
            synchronise(pl_module.device)
            now = time.perf_counter()
            self.first, self.last = (now, now) if self.steps == 1 else (self.first, now)
            self.peak_memory = peak_memory(pl_module.device)

    @property
    def seconds_before(self) -> float:
        """From the making of this watch to the first step: features are loaded, captions encoded."""
        return self.training - self.began

    @property
    def seconds_first(self) -> float:
        """Of the first step."""
        return self.first - self.training

    @property
    def seconds_per_step(self) -> float:
        """Of the steps after the first."""
        return (self.last - self.first) / max(1, self.steps - 1)


def step_times(
    overrides: Sequence[str], output: Path, steps: int, model: SimZSS | None = None, more: Sequence[pl.Callback] = ()
) -> StepTimes:
    """Train for `steps` steps after the first one, and say what they took."""
    watch = StepTimes()
    make_run([*overrides, f"trainer.max_steps={steps + 1}"], output, [watch, *more], model).fit()
    return watch


def peak_memory(device: torch.device) -> int:
    """Most bytes that this program has held: of the device's memory, or of the host's without one."""
    if (memory := allocator(device)) is not None:
        return int(memory.max_memory_allocated(device))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def synchronise(device: torch.device) -> None:
    """Wait for all that the device was told to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Float32 products as a run of this precision has them."""
    before = torch.get_float32_matmul_precision()
    allow_rounded_products(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
