"""Processes forked from the test's own, which has imported already what takes others seconds: two by gloo, or one."""

import logging
import os
import signal
import sys
import tempfile
import traceback
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


def forked(work: Callable[[], Any], log: Path) -> tuple[int, str]:
    """Run `work` in a process forked from the test's; return its exit code and what it wrote to stdout and stderr."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            logging.root.handlers.clear()  # pytest's own
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, log.read_text(encoding="utf-8")
