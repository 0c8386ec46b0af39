"""Collectives with gradients and the process's place. The only torch.distributed import.

With the gather and the sum below, a loss that each rank computes over its own rows and averages over ranks (as DDP
averages gradients) has the gradient of the same loss over the joint batch. On one process they are the identity.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor

Value = TypeVar("Value")


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, each on an accelerator of its own; nothing to do for one process."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield
        return
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group()  # nccl for tensors on GPUs, gloo for those on CPUs
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate every rank's rows in rank order, with gradient; (B, …) -> (world * B, …), equal B on all ranks."""
    if world_size() == 1:
        return rows
    return torch.cat(dist_nn.all_gather(rows.contiguous()), dim=0)


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of every rank's tensor, with gradient (the gradients of all ranks are summed in turn)."""
    return value if world_size() == 1 else dist_nn.all_reduce(value)


@torch.no_grad()
def total(value: Tensor) -> Tensor:
    """Sum of every rank's tensor, without gradient."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def minimum(value: int) -> int:
    """Smallest of every rank's integer."""
    if world_size() == 1:
        return value
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor)


def gather_values(value: Value) -> list[Value]:
    """Every rank's value in rank order, on all ranks; for the little that is no tensor, such as reasons."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
