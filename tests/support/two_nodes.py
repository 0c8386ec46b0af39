"""Two machines on this one: the processes that torchrun or Slurm would start, each in a folder of its own.

A process is forked from one that has imported what a run needs, which takes seconds, and then is what its machine would
have started: `simzss` with its arguments, its environment and its working directory.
"""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["simzss.training.run", "simzss.evaluation.run"])
NOISE = ("FutureWarning", "  return ", "Initializing distributed")


@dataclass
class Node:
    """One process on one machine; `log` holds what it says on both outputs."""

    process: BaseProcess
    folder: Path

    @property
    def log(self) -> str:
        """What it has said so far, without what torch and Lightning say of themselves."""
        lines = (self.folder / "log").read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if not any(noise in line for noise in NOISE))


def torchrun(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells the one process of machine `rank`."""
    return {
        "RANK": str(rank), "LOCAL_RANK": "0", "GROUP_RANK": str(rank), "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "rehearsal",
    }  # fmt: skip


def slurm(rank: int, world: int, port: int) -> dict[str, str]:
    """What srun tells the one task of machine `rank`; all names lead to this machine."""
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
        world: machines that are meant to be there, if not those.
    """
    port, nodes = free_port(), []
    for rank, words in enumerate(arguments):
        home = folder / f"node{rank}"
        home.mkdir(parents=True)
        environment = launcher(rank, world or len(arguments), port)
        process = _FORKED.Process(target=_run, args=(home, environment, list(words)), daemon=False)
        process.start()
        nodes.append(Node(process, home))
    return nodes


def finish(nodes: Sequence[Node], seconds: float = 60) -> list[int | None]:
    """Exit codes of the nodes, negative for a signal, None for one that had to be ended after `seconds`."""
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
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _run(home: Path, environment: dict[str, str], arguments: list[str]) -> None:
    """A machine's process, from its environment on."""
    import torch
    from lightning_utilities.core.rank_zero import rank_zero_only

    from simzss.cli import main

    os.chdir(home)
    os.environ.update(environment)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    # Read from the environment when Lightning is imported, which has happened already.
    rank_zero_only.rank = int(environment.get("RANK", environment.get("SLURM_PROCID", "0")))
    sys.argv = ["simzss", *arguments]
    main()
