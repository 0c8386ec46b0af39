"""Callbacks of every kind of training: progress, and the settings beside the run."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from simzss.progress import Bar
from simzss.settings.base import Settings
from simzss.settings.files import save


class Progress(pl.Callback):
    """Shows steps, rate, time left and the loss: a bar on a terminal, lines in a log file."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin at the step from which the run goes on."""
        total, hidden = int(trainer.estimated_stepping_batches), not trainer.is_global_zero
        self._bar = Bar(total, "training", "steps", initial=trainer.global_step, hidden=hidden)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Count a step."""
        if self._bar.due:
            self._bar.set_postfix({"epoch": trainer.current_epoch, **trainer.progress_bar_metrics}, refresh=False)
        self._bar.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the last state of the bar."""
        self._bar.close()


class SaveSettings(pl.Callback):
    """Writes the settings of a run when its training begins, for `config=FILE`.

    Not before: what ends earlier, such as shards that are missing, leaves no run behind.
    """

    def __init__(self, settings: Settings, path: Path) -> None:
        self.settings = settings
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, by one process."""
        if trainer.is_global_zero:
            save(self.settings, self.path)
