"""Placement of features for a run: in the accelerator's memory, in the host's or in the files, by what fits."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from simzss.errors import ConfigError
from simzss.features.settings import Placement

DEVICE_SHARE = 0.6
"""Share of the accelerator's free memory that features may take: towers, gradients and activations need the rest."""
HOST_SHARE = 0.7
"""Share of the host's free memory that they may take."""


@dataclass(frozen=True)
class Memory:
    """Free bytes that one process may count on.

    Attributes:
        host: of the machine's memory, divided by its processes.
        device: of its accelerator; None without one, or when it does not say.
        accelerator: there is one.
    """

    host: int
    device: int | None = None
    accelerator: bool = False


def choose(wanted: Placement, nbytes: int, memory: Memory) -> Placement:
    """Return `device`, `host` or `mapped` for features of so many bytes; without an accelerator `device` is `host`.

    Raises:
        ConfigError: more than is free of the memory that was asked for.
    """
    if wanted == "device" and not memory.accelerator:
        wanted = "host"
    if wanted == "auto":
        if memory.device is not None and nbytes <= DEVICE_SHARE * memory.device:
            return "device"
        return "host" if nbytes <= HOST_SHARE * memory.host else "mapped"
    free = {"device": memory.device, "host": memory.host}.get(wanted)
    if free is not None and nbytes > free:
        raise ConfigError(f"placement={wanted}: the features take {size_text(nbytes)}, {size_text(free)} are free")
    return wanted


def free_memory(device: torch.device, processes: int) -> Memory:
    """Return the memory that is free now for each of so many processes of this machine, each with its own device."""
    host = free_host_memory() // processes
    if device.type == "cpu":
        return Memory(host)
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return Memory(host, None, True)
    free, _ = module.mem_get_info(device)
    # What torch holds and does not use is as good as free.
    return Memory(host, free + module.memory_reserved(device) - module.memory_allocated(device), True)


def free_host_memory() -> int:
    """Return the bytes that can be taken without swapping: of the machine, or of the control group that has fewer."""
    return min([psutil.virtual_memory().available, *_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _group_limits(membership: Path, root: Path) -> Iterator[int]:
    """Yield the free bytes of this process's control groups (v1 and v2), as containers and Slurm limit them."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, limit, usage = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = base / group.strip("/")
        # A container sees its own group as the root, whatever it is called outside.
        for folder in (own, *own.parents):
            try:
                # The page cache counts as used, and is given up when memory is needed.
                used = int((folder / usage).read_text()) - _reclaimable(folder)
                yield max(0, int((folder / limit).read_text()) - used)
            except (OSError, ValueError):  # not there, or "max"
                pass
            if folder == base:
                break


def _reclaimable(folder: Path) -> int:
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))


def local_processes(world: int) -> int:
    """Return the number of processes of the run on this machine, as torchrun says; all where nothing says so."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world))


def size_text(nbytes: float) -> str:
    """Format a number of bytes."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
