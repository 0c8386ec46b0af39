"""Two machines simulated on this one: the processes that torchrun or Slurm would start, each in its own folder.

A process is forked from that of the test, which has imported what a run needs, and then runs what its machine would
have started: `simzss` with its arguments, environment and working directory; or torchrun, which starts it.
"""

import logging
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKED = multiprocessing.get_context("fork")
NOISE = ("FutureWarning", "  return ", "Initializing distributed")


@dataclass
class Node:
    """One process on one machine."""

    process: BaseProcess
    folder: Path

    @property
    def log(self) -> str:
        """Return its output so far, without what torch and Lightning say of themselves."""
        lines = (self.folder / "log").read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if not any(noise in line for noise in NOISE))


def torchrun(rank: int, world: int, port: int) -> dict[str, str]:
    """Return the environment that torchrun gives to the one process of machine `rank`."""
    return {
        "RANK": str(rank), "LOCAL_RANK": "0", "GROUP_RANK": str(rank), "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "rehearsal",
    }  # fmt: skip


def slurm(rank: int, world: int, port: int) -> dict[str, str]:
    """Return the environment that srun gives to the one task of machine `rank`; all names lead to this machine."""
    return {
        "SLURM_JOB_ID": str(port), "SLURM_JOB_NAME": "rehearsal", "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": str(world), "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": str(world),
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0", "SLURM_NODEID": str(rank),
        "SLURM_NODELIST": "node[0-1]", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def start(
    folder: Path,
    arguments: Sequence[Sequence[str]],
    launcher: Callable[[int, int, int], dict[str, str]] = torchrun,
    world: int | None = None,
) -> list[Node]:
    """Start `simzss` on as many machines as there are lists of arguments, each in `folder/node<rank>`.

    Args:
        folder: gets the working directories.
        arguments: of each machine.
        launcher: whose environment the processes get.
        world: number of machines that are expected, if not those.
    """
    port, world = free_port(), world or len(arguments)
    return [_start(folder, rank, _simzss, launcher(rank, world, port), words) for rank, words in enumerate(arguments)]


def start_torchrun(folder: Path, arguments: Sequence[str]) -> list[Node]:
    """Start torchrun itself on two machines, each with one `simzss` that it starts; folders as in `start`."""
    options = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    command = [*options, "-m", "simzss", *arguments]
    return [
        _start(folder, rank, _torchrun, {"OMP_NUM_THREADS": "1"}, [f"--node-rank={rank}", *command])
        for rank in range(2)
    ]


def finish(nodes: Sequence[Node], seconds: float = 60) -> list[int | None]:
    """Return the exit codes, negative for a signal, None for a process that had to be killed after `seconds`."""
    limit = time.monotonic() + seconds
    codes: list[int | None] = []
    for node in nodes:
        node.process.join(max(0.0, limit - time.monotonic()))
        codes.append(node.process.exitcode)
    for node in nodes:
        node.process.kill()
        node.process.join()
    return codes


def wait_for(path: Path, node: Node, seconds: float = 60) -> None:
    """Wait until a file appears; fail when the node ends before it does."""
    limit = time.monotonic() + seconds
    while not path.exists():
        assert node.process.is_alive() and time.monotonic() < limit, f"{path} did not appear: {node.log[-2000:]}"
        time.sleep(0.01)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _start(
    folder: Path, rank: int, run: Callable[[list[str]], None], environment: dict[str, str], words: Sequence[str]
) -> Node:
    home = folder / f"node{rank}"
    home.mkdir(parents=True)
    process = _FORKED.Process(target=_settle, args=(home, environment, run, list(words)), daemon=False)
    process.start()
    return Node(process, home)


def _settle(home: Path, environment: dict[str, str], run: Callable[[list[str]], None], words: list[str]) -> None:
    """Set up the process of a machine and run it."""
    os.chdir(home)
    os.environ.update(environment)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(file, "w", buffering=1, closefd=False) for file in (1, 2))  # else pytest's own
    logging.root.handlers.clear()
    run(words)


def _simzss(arguments: list[str]) -> None:
    import torch
    from lightning_utilities.core.rank_zero import rank_zero_only

    from simzss.cli import main

    torch.set_num_threads(1)
    # Read from the environment when Lightning is imported, which has happened already.
    rank_zero_only.rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    sys.argv = ["simzss", *arguments]
    main()


def _torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import main

    main(arguments)
