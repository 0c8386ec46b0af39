"""Where metrics go: a CSV file, TensorBoard, Weights & Biases, or several of them."""

import csv
import importlib.util
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment

from simzss.atomic import atomic_write, sync
from simzss.errors import ConfigError
from simzss.training.settings import LoggerSettings, WandbSettings

log = logging.getLogger(__name__)

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
    """Lightning's CSV logger with a file of our own: it keeps the rows of the run that is resumed.

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
        if self._experiment is None:
            self._experiment = Table(self.path, self.resumed_step)  # type: ignore[assignment]
        return self._experiment

    def sync(self) -> None:
        """Flush the rows to the disk: a checkpoint that outlives a power cut must not outlive its rows."""
        if isinstance(self._experiment, Table):
            self._experiment.sync()


class Table:
    """A CSV file that grows by rows. Rows that cannot be written wait: they are no reason to lose a training.

    Args:
        path: of the file.
        resumed_step: see `ResumableCSVLogger`.

    Raises:
        OSError: the earlier rows cannot be read or put back.
    """

    def __init__(self, path: Path, resumed_step: int | None) -> None:
        self.path = path
        self.columns: list[str] = []
        self._waiting: list[dict[str, Any]] = []
        self._size = 0  # of the file, up to its last whole row
        self._failed = False
        known = [] if resumed_step is None else _read_rows(path)
        rows = [row for row in known if int(row["step"]) < (resumed_step or 0)]
        path.parent.mkdir(parents=True, exist_ok=True)
        if rows:
            self._replace(sorted(rows[0]), rows)
        else:
            path.unlink(missing_ok=True)

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Note a row."""
        values = {key: value.item() if hasattr(value, "item") else value for key, value in metrics.items()}
        self._waiting.append(values | {"step": step})

    def save(self) -> None:
        """Write the rows that wait; where the disk is full or the folder gone, say so once and try again later."""
        if not self._waiting:
            return
        try:
            self._write()
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written: %s; training goes on", self.path, error.strerror or error)
            self._failed = True
        else:
            self._waiting, self._failed = [], False

    def sync(self) -> None:
        """Flush the file to the disk."""
        if self.path.is_file():
            with self.path.open("r+b") as file:
                sync(file)

    def _write(self) -> None:
        columns = sorted(set(self.columns).union(*self._waiting))
        if columns != self.columns or not self.path.is_file():
            self._replace(columns, [*_read_rows(self.path), *self._waiting])
            return
        rows = _as_csv(columns, self._waiting)
        with self.path.open("r+b") as file:
            file.seek(self._size)  # over what an attempt that failed has left
            file.write(rows)
        self._size += len(rows)

    def _replace(self, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        content = _as_csv(columns, rows, header=True)
        atomic_write(self.path, content, durable=False)
        self.columns, self._size = list(columns), len(content)


def _as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = False) -> bytes:
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, fieldnames=columns)
    if header:
        table.writeheader()
    table.writerows(rows)
    return file.getvalue().encode()


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Read the intact rows of a CSV log: a run that was cut off leaves half a row, which may still parse as one."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [row for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])) if _is_intact(row)]


def _is_intact(row: dict[str, str]) -> bool:
    """Tell whether a row has a step and, in every other column, a number or nothing."""
    try:
        return int(row["step"]) >= 0 and all(value == "" or type(float(value)) is float for value in row.values())
    except (KeyError, TypeError, ValueError):
        return False
