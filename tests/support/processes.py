"""Two real processes (gloo), forked from the test's own, which has imported already what takes others seconds."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2


def on_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Run `work(rank)` on each of two processes of a group and return what each found, in files under `folder`."""
    home = Path(tempfile.mkdtemp(dir=folder))
    mp.start_processes(_run, (work, home), nprocs=WORLD, start_method="fork")
    return [torch.load(home / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def _run(rank: int, work: Callable[[int], Any], home: Path) -> None:
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    dist.init_process_group("gloo", init_method=f"file://{home}/rendezvous", rank=rank, world_size=WORLD)
    torch.save(work(rank), home / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
