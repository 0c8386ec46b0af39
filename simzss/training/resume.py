"""Where a run begins: at its first step, at a checkpoint, or not at all, as it is finished."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from simzss.atomic import PARTIAL, read_json
from simzss.distributed import gather_values
from simzss.errors import ConfigError, ModelError
from simzss.models.folder import check_sums
from simzss.training.callbacks import CHECKPOINTS, Checkpoints, checkpoints_of
from simzss.training.checkpoint_io import read_checkpoint
from simzss.training.loggers import ResumableCSVLogger

log = logging.getLogger(__name__)

_TRACES = ("config.yaml", "metrics.csv", "checkpoints/*.ckpt", "model/config.json")
"""Files that a run leaves in its folder, whatever its loggers are."""


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: to continue from; None: the first step.
        step: of the checkpoint.
        finished: all its steps are made and its model is written.
    """

    checkpoint: Path | None = None
    step: int = 0
    finished: bool = False


def find_start(resume: str | None, output: Path, trainer: pl.Trainer) -> Start:
    """Return where a run begins; what a killed one left half done is removed, by one process.

    Args:
        resume: `last`, or a checkpoint file; None for a new run.
        output: folder of the run, held by the first process.
        trainer: of the run; its CSV logger and its `Checkpoints` learn where it begins.

    Raises:
        ConfigError: no such checkpoint, a damaged one, or a new run would overwrite one.
        OSError: a file cannot be read or removed.
    """
    if trainer.is_global_zero:
        _clean(output)
    if resume is None:
        trace = next((path for pattern in _TRACES for path in output.glob(pattern)), None)
        if trace is not None:
            raise ConfigError(f"output_dir={output} holds a run already ({trace.name}): give another, or resume=last")
        return Start()
    if resume == "last":
        found = checkpoints_of(output / CHECKPOINTS)
        if not found:
            _begin_again(output, trainer)
            return Start()
        path, content = found[0], _read_last(found)
    else:
        path = Path(resume)
        if not path.is_file():
            raise ConfigError(f"resume={resume}: {path} does not exist")
        content = read_checkpoint(path)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                callback.kept = path.resolve()
    step = int(content["global_step"])
    for logger in trainer.loggers:
        if isinstance(logger, ResumableCSVLogger):
            logger.resumed_step = step
    finished = resume == "last" and _is_trained(content, trainer) and _has_model(output / "model", step)
    if finished and trainer.is_global_zero:
        log.info("%s is finished: its model has made all %d steps", output, step)
    return Start(path, step, finished)


def require_same_start(start: Start, output: Path) -> None:
    """Compare what all processes have found.

    Raises:
        ConfigError: on all of them, one has found another checkpoint than the first.
    """
    seen = gather_values((start.checkpoint and start.checkpoint.name, start.step, start.finished))
    for number, other in enumerate(seen):
        if other != seen[0]:
            raise ConfigError(f"output_dir={output} is not the same folder for process {number} as for process 0: "
                              f"its last checkpoint is {other[0]} and not {seen[0][0]}")  # fmt: skip


def _read_last(found: Sequence[Path]) -> dict[str, Any]:
    """Read the first of a run's checkpoints; where it is damaged, the error names an older one that is whole."""
    try:
        return read_checkpoint(found[0])
    except ConfigError as error:
        whole = next(filter(_is_whole, found[1:]), None)
        way = (
            "when it is removed, resume=last begins anew" if whole is None else f"an older one is whole: resume={whole}"
        )
        raise ConfigError(f"{error}; {way}") from error


def _is_whole(checkpoint: Path) -> bool:
    try:
        read_checkpoint(checkpoint)
    except ConfigError:
        return False
    return True


def _begin_again(output: Path, trainer: pl.Trainer) -> None:
    """Remove the traces of a run that ended before its first checkpoint."""
    if (output / "model" / "config.json").is_file():
        raise ConfigError(
            f"resume=last: {output} has a model but no checkpoint to continue from: give another output_dir"
        )
    if not trainer.is_global_zero:
        return
    log.info("resume=last: %s has no checkpoint yet: the run begins", output)
    for name in ("config.yaml", "metrics.csv", "skipped.json"):
        (output / name).unlink(missing_ok=True)


def _clean(output: Path) -> None:
    """Remove what killed runs left half written, and sums without their checkpoints."""
    folder = output / CHECKPOINTS
    for leftover in (*output.glob(f".*{PARTIAL}*"), *folder.glob(f".*{PARTIAL}*")):
        if not leftover.is_dir():
            leftover.unlink(missing_ok=True)
    for sums in folder.glob("*.ckpt.sha256"):
        if not sums.with_suffix("").exists():
            sums.unlink(missing_ok=True)
    last = folder / "last.ckpt"
    if last.is_symlink() and not last.exists():
        last.unlink()


def _is_trained(content: dict[str, Any], trainer: pl.Trainer) -> bool:
    """Tell whether a checkpoint is of the last step that the trainer would make."""
    epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    most, steps = trainer.max_epochs, trainer.max_steps
    return (most is not None and 0 <= most <= epochs) or 0 <= steps <= int(content["global_step"])


def _has_model(folder: Path, step: int) -> bool:
    """Tell whether a model folder is that of a step, and whole as far as it can tell."""
    config = read_json(folder / "config.json")
    info = config.get("settings") if isinstance(config, dict) else None
    if not isinstance(info, dict) or info.get("head_steps", info.get("steps")) != step:
        return False
    try:
        check_sums(folder)
    except ModelError:
        return False
    return True
