"""What a run says of itself: the progress bar, and the CSV log, which a resumed run goes on writing."""

import csv
import io
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment


class ProgressBar(TQDMProgressBar):
    """Lightning's bar without the version of the logger: a run's folder is its name."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What the bar shows beside the rate."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, without its habit of deleting the log of the run that is resumed.

    Args:
        folder: gets `metrics.csv`.
        resumed_step: keep the rows of earlier steps (a crashed run may have logged some that come again), None for a
            new run.
    """

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        super().__init__(folder, name="", version="")
        self.path = folder / "metrics.csv"
        self.resumed_step = resumed_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer; at its first use the earlier rows are put back."""
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
    """The rows of a CSV log that are whole: a run that was cut off leaves half a row, which may still look like one."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return [row for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])) if _is_whole(row)]


def _is_whole(row: dict[str, str]) -> bool:
    """Whether there is a step, and a number or nothing in every other column, neither too few nor too many."""
    try:
        return int(row["step"]) >= 0 and all(value == "" or type(float(value)) is float for value in row.values())
    except (KeyError, TypeError, ValueError):
        return False
