"""Process group, rank, and collectives with gradients; the only import of torch.distributed.

With the gather and the sum below, a loss that each rank computes over its own rows and averages over ranks (as DDP
averages gradients) has the gradient of the same loss over the joint batch. On one process they are the identity.
"""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor

from simzss.errors import InputError

Value = TypeVar("Value")

# Messages of gloo and NCCL when the other side of a collective has ended or does not answer.
_LOST = re.compile(r"Connection (closed|reset)|Broken pipe|Timed out|timeout|remote process|ncclRemoteError", re.I)


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def process_group() -> Iterator[None]:
    """Initialise the process group of torchrun or srun, each process on an accelerator of its own; none for one.

    Raises:
        InputError: another process has ended; its own log says why.
    """
    world, local, arguments = _environment()
    if world == 1 or dist.is_initialized():
        yield
        return
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(local)
    dist.init_process_group(**arguments)  # nccl for tensors on GPUs, gloo for those on CPUs
    try:
        with naming_lost_ranks():
            yield
    finally:
        dist.destroy_process_group()


def _environment() -> tuple[int, int, dict[str, Any]]:
    """Return the number of processes, the local rank, and arguments of `init_process_group`."""
    if "WORLD_SIZE" not in os.environ and "SLURM_STEP_ID" in os.environ:
        from lightning_fabric.plugins.environments import SLURMEnvironment

        if SLURMEnvironment.detect():
            slurm = SLURMEnvironment()
            address = f"tcp://{slurm.main_address}:{slurm.main_port}"
            arguments = {"world_size": slurm.world_size(), "rank": slurm.global_rank(), "init_method": address}
            return slurm.world_size(), slurm.local_rank(), arguments
    return int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0")), {}


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Raise an error of one rank on all of them at the end of the block, so that none waits for it in a collective.

    Raises:
        InputError: an error of another rank, named with the rank and its machine. A rank's own error goes on as it is.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if world_size() > 1:
        name = f"process {rank()} on {platform.node()}"
        messages = gather_values(None if error is None else f"{name}: {first_line(error)}")
        others = [message for message in messages if message is not None]
        if error is None and others:
            raise InputError(others[0])
    if error is not None:
        raise error


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Turn the error of a collective whose other side is lost into one line.

    Raises:
        InputError: another process has ended or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() > 1 and _LOST.search(str(error)):
            raise InputError(
                f"process {rank()} on {platform.node()} has lost another process, whose own log says why "
                f"({first_line(error)})"
            ) from error
        raise


def destroy_process_group() -> None:
    """Destroy the process group, if there is one, at the end of a run: threads of gloo that outlive it abort it."""
    if world_size() > 1:
        dist.destroy_process_group()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate every rank's rows in rank order, with gradient; (B, …) -> (world * B, …), equal B on all ranks."""
    if world_size() == 1:
        return rows
    return torch.cat(dist_nn.all_gather(rows.contiguous()), dim=0)


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum every rank's tensor, with gradient (the gradients of all ranks are summed in turn)."""
    return value if world_size() == 1 else dist_nn.all_reduce(value)


@torch.no_grad()
def total(value: Tensor) -> Tensor:
    """Sum every rank's tensor, without gradient."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def gather_values(value: Value) -> list[Value]:
    """Return every rank's picklable value in rank order, on all ranks; for small ones such as messages."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
