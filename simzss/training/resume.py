"""The checkpoint that a run continues from, and folders that hold a run already."""

from pathlib import Path

import pytorch_lightning as pl
import torch

from simzss.errors import ConfigError
from simzss.training.loggers import ResumableCSVLogger

_TRACES = ("config.yaml", "metrics.csv", "checkpoints/*.ckpt", "model/config.json")
"""Files that a run leaves in its folder, whatever its loggers are."""


def find_checkpoint(resume: str | None, output: Path, trainer: pl.Trainer) -> Path | None:
    """Return the checkpoint to continue from, None for a new run; the trainer's CSV logger learns its step.

    Args:
        resume: `last`, or a checkpoint file; None for a new run.
        output: folder of the run.
        trainer: of the run.

    Raises:
        ConfigError: there is no such checkpoint, or a new run would overwrite one.
    """
    if resume is None:
        trace = next((path for pattern in _TRACES for path in output.glob(pattern)), None)
        if trace is not None:
            raise ConfigError(f"output_dir={output} holds a run already ({trace.name}): give another, or resume=last")
        return None
    path = _checkpoint(resume, output)
    step = _step_of(path)
    for logger in trainer.loggers:
        if isinstance(logger, ResumableCSVLogger):
            logger.resumed_step = step
    return path


def _checkpoint(resume: str, output: Path) -> Path:
    path = output / "checkpoints" / "last.ckpt" if resume == "last" else Path(resume)
    if resume == "last" and path.is_symlink() and not path.exists():
        # Ended between the removal of the checkpoint before and the link to the new one, which is intact by then.
        path = max(path.parent.glob("epoch*.ckpt"), key=lambda file: file.stat().st_mtime, default=path)
    if not path.is_file():
        raise ConfigError(f"resume={resume}: {path} does not exist")
    return path


def _step_of(checkpoint: Path) -> int:
    """Read the optimiser step at which a checkpoint was written."""
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
    except Exception as error:
        # A foreign or broken file fails in as many ways as there are formats.
        reason = (str(error).splitlines() or ["it is empty or broken off"])[0]
        raise ConfigError(f"resume={checkpoint} is no checkpoint: {reason}") from error
