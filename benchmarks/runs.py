"""Training runs as `simzss train` makes them, with callbacks that measure time."""

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

from simzss.commands.train import TrainSettings, build_training
from simzss.device import allocator, device_of, enable_tf32, resolve_precision
from simzss.models.simzss import SimZSS
from simzss.training.data.datamodule import CaptionDataModule
from simzss.training.loggers import build_loggers
from simzss.training.module import SimZSSModule
from simzss.training.trainer import build_trainer

NEVER = 1_000_000


@dataclass
class Run:
    """The parts of a run."""

    precision: str
    module: SimZSSModule
    data: CaptionDataModule
    trainer: pl.Trainer

    def fit(self) -> None:
        """Train."""
        with matmul_precision(self.precision):
            self.trainer.fit(self.module, datamodule=self.data)


def make_run(
    settings: TrainSettings, output: Path, callbacks: Sequence[pl.Callback] = (), model: SimZSS | None = None
) -> Run:
    """Build a run that writes no checkpoint.

    Args:
        settings: of the run; `trainer.max_steps` ends it.
        output: gets a folder with the logs of the run.
        callbacks: of the trainer.
        model: of these settings, to save the time of building one.
    """
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for noisy in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.rank_zero", "timm"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    output = output / f"run-{time.monotonic_ns()}"
    quiet = settings.trainer.replace(progress_bar=False, checkpoint_every_n_epochs=NEVER, epochs=NEVER)
    settings = settings.replace(trainer=quiet, output_dir=output)
    precision = resolve_precision(quiet.precision, device_of(quiet.accelerator))
    trainer = build_trainer(quiet, build_loggers(settings.logger, output), output, precision, callbacks)
    module, data = build_training(settings, precision, model)
    if quiet.compile:
        module.model.text_encoder.compile_body()
    return Run(precision, module, data, trainer)


class StepTimes(pl.Callback):
    """Measures the first step, all that comes before it, and the other steps together.

    The device is waited for after the first and after the last step only: within, batches are prefetched as ever.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.training = self.first = self.last = 0.0
        self.steps = 0
        self.peak_memory = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the time before the first batch."""
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
        """Return the seconds from the construction to the first step: features are loaded, captions encoded."""
        return self.training - self.began

    @property
    def seconds_first(self) -> float:
        """Return the seconds of the first step."""
        return self.first - self.training

    @property
    def seconds_per_step(self) -> float:
        """Return the seconds of each step after the first."""
        return (self.last - self.first) / max(1, self.steps - 1)


def step_times(settings: TrainSettings, output: Path, steps: int, model: SimZSS | None = None) -> StepTimes:
    """Train for `steps` steps after the first one and return their times."""
    watch = StepTimes()
    make_run(with_steps(settings, steps + 1), output, [watch], model).fit()
    return watch


def with_steps(settings: TrainSettings, steps: int) -> TrainSettings:
    """Return settings of a run of so many steps."""
    return settings.replace(trainer=settings.trainer.replace(max_steps=steps))


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this program in bytes: of the device, or of the host without one."""
    if (memory := allocator(device)) is not None:
        return int(memory.max_memory_allocated(device))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Compute float32 products as a run of this precision does."""
    before = torch.get_float32_matmul_precision()
    enable_tf32(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
