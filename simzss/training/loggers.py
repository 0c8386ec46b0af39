"""Where metrics go: a CSV file, TensorBoard, Weights & Biases, or several of them."""

import csv
import importlib.util
import io
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment

from simzss.errors import ConfigError
from simzss.training.settings import LoggerSettings, WandbSettings

_EXTRAS = ("tensorboard", "wandb")
"""Loggers whose package is an extra of the same name."""


def build_loggers(settings: LoggerSettings, output: Path, resumed_step: int | None = None) -> list[Logger]:
    """Build the loggers of a run.

    Args:
        settings: which of them.
        output: folder of the run.
        resumed_step: see `ResumableCSVLogger`.

    Raises:
        ConfigError: the package of one of them is not installed.
    """
    for extra in _EXTRAS:
        if getattr(settings, extra) is not None and importlib.util.find_spec(extra) is None:
            raise ConfigError(f"logger={extra} needs {extra}: pip install 'simzss[{extra}]'")
    loggers: list[Logger] = []
    if settings.csv is not None:
        loggers.append(ResumableCSVLogger(output, resumed_step))
    if settings.tensorboard is not None:
        loggers.append(TensorBoardLogger(output, name="", version=settings.tensorboard.folder))
    if settings.wandb is not None:
        loggers.append(_wandb(settings.wandb, output))
    return loggers


def _wandb(settings: WandbSettings, output: Path) -> Logger:
    from pytorch_lightning.loggers import WandbLogger

    return WandbLogger(
        name=settings.name or output.name, project=settings.project, save_dir=output, offline=settings.offline
    )


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, which keeps the rows of the run that is resumed.

    Args:
        folder: gets `metrics.csv`.
        resumed_step: keep the rows of earlier steps (a crashed run may have logged some that come again); None for a
            new run.
    """

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        super().__init__(folder, name="", version="")
        self.path = folder / "metrics.csv"
        self.resumed_step = resumed_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the writer; its first use puts the earlier rows back."""
        if self._experiment is None and self.resumed_step is not None and self.path.is_file():
            rows = [row for row in _read_rows(self.path) if int(row["step"]) < self.resumed_step]
            if not rows:
                return super().experiment
            kept = self.path.with_suffix(".kept")
            with kept.open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, fieldnames=sorted(rows[0]))
                table.writeheader()
                table.writerows(rows)
            writer = super().experiment  # deletes the file
            kept.replace(self.path)
            writer.metrics_keys = sorted(rows[0])
            return writer
        return super().experiment


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Read the intact rows of a CSV log: a run that was cut off leaves half a row, which may still parse as one."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return [row for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])) if _is_intact(row)]


def _is_intact(row: dict[str, str]) -> bool:
    """Tell whether a row has a step and, in every other column, a number or nothing."""
    try:
        return int(row["step"]) >= 0 and all(value == "" or type(float(value)) is float for value in row.values())
    except (KeyError, TypeError, ValueError):
        return False
