"""Callbacks of every kind of training: progress, checkpoints, and the settings beside the run."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from simzss.atomic import partial_path
from simzss.progress import Bar
from simzss.settings.base import Settings
from simzss.settings.files import save
from simzss.training.checkpoint_io import WholeCheckpointIO
from simzss.training.loggers import ResumableCSVLogger


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


CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints."""


class Checkpoints(Checkpoint):
    """Writes `epochN.ckpt` at the end of every so many epochs and of the run, then removes the one before.

    `last.ckpt` leads to the newest at any moment: it is exchanged before the older one is removed.

    Args:
        folder: of the checkpoints.
        every_n_epochs: see above.

    Attributes:
        kept: a checkpoint that is not removed, as the user has named it.
    """

    def __init__(self, folder: Path, every_n_epochs: int) -> None:
        self.folder = folder
        self.every_n_epochs = every_n_epochs
        self.kept: Path | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the folder of the run; it is not made again where it is removed meanwhile."""
        if trainer.is_global_zero:
            self.folder.parent.mkdir(parents=True, exist_ok=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write one."""
        epoch = trainer.current_epoch + 1
        ends = epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if epoch % self.every_n_epochs and not ends:
            return
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger):
                logger.sync()
        path = self.folder / f"epoch{trainer.current_epoch}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            keep_only(path, self.kept)


def keep_only(newest: Path, kept: Path | None = None) -> None:
    """Let `last.ckpt` lead to a checkpoint and remove the others in its folder, but for `kept`."""
    if newest.name != "last.ckpt":  # a file of that name is one of version 0.1
        lead(newest.with_name("last.ckpt"), newest)
    for older in checkpoints_of(newest.parent):
        if older != newest and older.resolve() != kept:
            WholeCheckpointIO().remove_checkpoint(older)


def lead(link: Path, target: Path) -> None:
    """Let a link lead to a file in its folder from one moment to the next."""
    partial = partial_path(link)
    # Windows lets few users make links; `resume=last` finds the newest checkpoint without one.
    with suppress(OSError):
        partial.unlink(missing_ok=True)
        partial.symlink_to(target.name)
        partial.replace(link)


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the last one first; `last.ckpt` is one where it is no link."""
    found = {path: path.stat().st_mtime_ns for path in folder.glob("epoch*.ckpt") if path.is_file()}
    last = folder / "last.ckpt"
    if last.is_file() and not last.is_symlink():
        found[last] = last.stat().st_mtime_ns
    return sorted(found, key=lambda path: (found[path], path.name), reverse=True)


class SaveSettings(pl.Callback):
    """Writes the settings of a run when its training begins, for `config=FILE`.

    Not before: what ends earlier, such as shards that are missing, leaves no run behind.

    Args:
        settings: to write.
        path: of the file.
    """

    def __init__(self, settings: Settings, path: Path) -> None:
        self.settings = settings
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, by one process."""
        if trainer.is_global_zero:
            save(self.settings, self.path)
