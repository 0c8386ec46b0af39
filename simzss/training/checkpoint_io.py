"""Checkpoint files: whole or not there at all, each with its SHA-256 beside it, by which damage is noticed.

`epochN.ckpt` and `epochN.ckpt.sha256`, which `sha256sum --check` reads. Checkpoints of version 0.1 have none.
"""

import errno
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from simzss.atomic import atomic_write
from simzss.checksums import sha256_of
from simzss.errors import ConfigError

_PARTS = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops")


class WholeCheckpointIO(CheckpointIO):
    """Lightning's checkpoints as files that are written beside their final name, summed, and checked when read."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint that appears whole or not at all; one of that name is replaced.

        Raises:
            OSError: the disk is full, the run's folder is gone, or the file cannot be written for another reason.
        """
        path = Path(path)
        path.parent.mkdir(exist_ok=True)  # not its parents: the folder of a run that is gone does not come back
        self.remove_checkpoint(path)  # or a kill between the two files left an old one with another's sum

        def write(stream: BinaryIO) -> None:
            torch.save(checkpoint, stream)
            stream.flush()
            # The sum is there before the file: no moment leaves a checkpoint that cannot be checked.
            atomic_write(sum_of(path), f"{sha256_of(Path(stream.name))}  {path.name}\n".encode())

        try:
            atomic_write(path, write)
        except BaseException:
            sum_of(path).unlink(missing_ok=True)
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, on the CPU and never more than its values, whatever is asked for."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and then its sum, where they are there."""
        for file in (Path(path), sum_of(Path(path))):
            file.unlink(missing_ok=True)


def sum_of(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's sum."""
    return checkpoint.with_name(f"{checkpoint.name}.sha256")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this program.

    Raises:
        ConfigError: it is damaged, or no checkpoint.
        OSError: it cannot be read.
    """
    sums = sum_of(path.resolve())  # beside the file that `last.ckpt` leads to
    if sums.is_file():
        if sums.read_bytes().split()[:1] != [sha256_of(path).encode()]:
            raise ConfigError(f"resume: {path} is damaged: its SHA-256 is not that of {sums.name}")
    elif (broken := _broken_record(path)) is not None:
        raise ConfigError(f"resume: {path} is damaged: its record {broken} has another CRC")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        missing = [part for part in _PARTS if part not in content]
    except Exception as error:
        # A foreign or broken file fails in as many ways as there are formats; what is cut off as EINVAL.
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        reason = (str(error).splitlines() or ["it is empty or broken off"])[0]
        raise ConfigError(f"resume={path} is no checkpoint: {reason}") from error
    if missing:
        raise ConfigError(f"resume={path} is no checkpoint of a training run: it lacks {missing[0]}")
    return dict(content)


def _broken_record(path: Path) -> str | None:
    """Return the first record of a checkpoint without a sum that differs from its CRC; None where it is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return None  # torch says what is wrong with it
