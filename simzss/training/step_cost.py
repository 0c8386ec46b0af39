"""What training takes, from one step before it begins: parameters, memory, time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from simzss.device import allocator

_GIB = 2**30


@dataclass(frozen=True)
class StepCost:
    """Cost of a step on one device.

    Attributes:
        trainable: number of trainable parameters.
        frozen: number of frozen parameters.
        fixed: bytes of all parameters, and of AdamW's two moments of the trainable ones.
        live: bytes that a step needs beside them at its peak, gradients included.
        seconds: duration; on an accelerator of the second step, when its kernels are loaded.
    """

    trainable: int
    frozen: int
    fixed: int
    live: int
    seconds: float

    def gigabytes(self, factor: float = 1.0) -> float:
        """Return the memory in GiB with `factor` times as many images a step: live bytes grow with them."""
        return (self.fixed + factor * self.live) / _GIB

    def summary(self, crops: int, processes: int) -> str:
        """Return one line for the log."""
        where = "" if processes == 1 else f" on {processes} processes"
        return (
            f"trainable parameters: {self.trainable / 1e6:.2f} M, frozen: {self.frozen / 1e6:.1f} M; memory: "
            f"{self.gigabytes():.2f} GiB, of which {self.live / _GIB:.2f} for a step; a step of {crops} crops{where}: "
            f"{self.seconds:.2f} s"
        )


def measure_step(model: nn.Module, loss: Callable[[], Tensor]) -> StepCost:
    """Run a step, forward and backward, and leave no trace of it: no gradient, no random number drawn.

    Args:
        model: all of it.
        loss: computes the loss of a step.

    Returns:
        Its cost. Live bytes are the peak of the accelerator's allocator; elsewhere they are estimated as the tensors
        saved for the backward pass and the gradients, without the frozen part's own.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trainable[0].device
    memory = allocator(device)
    with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
        if memory is not None:
            live, seconds = _measured(loss, trainable, memory, device)
        else:
            live, seconds = _estimated(loss, trainable)
    parameters = list(model.parameters())
    number = sum(parameter.numel() for parameter in trainable)
    frozen = sum(parameter.numel() for parameter in parameters) - number
    return StepCost(number, frozen, sum(p.nbytes for p in parameters) + 8 * number, live, seconds)


def _step(loss: Callable[[], Tensor], trainable: Sequence[nn.Parameter]) -> None:
    # Not `backward`: under DDP that would start to exchange gradients.
    torch.autograd.grad(loss(), trainable, allow_unused=True)


def _measured(
    loss: Callable[[], Tensor], trainable: Sequence[nn.Parameter], memory: Any, device: torch.device
) -> tuple[int, float]:
    _step(loss, trainable)
    memory.synchronize(device)
    memory.reset_peak_memory_stats(device)
    before, start = memory.memory_allocated(device), time.perf_counter()
    _step(loss, trainable)
    memory.synchronize(device)
    return memory.max_memory_allocated(device) - before, time.perf_counter() - start


def _estimated(loss: Callable[[], Tensor], trainable: Sequence[nn.Parameter]) -> tuple[int, float]:
    own = {parameter.untyped_storage().data_ptr() for parameter in trainable}
    saved: dict[int, int] = {}  # by storage: views of one tensor count once

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    start = time.perf_counter()
    with saved_tensors_hooks(note, lambda tensor: tensor):
        _step(loss, trainable)
    activations = sum(size for address, size in saved.items() if address not in own)
    return activations + sum(parameter.nbytes for parameter in trainable), time.perf_counter() - start
