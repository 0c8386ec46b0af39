"""What training a head takes: parameters, memory, time of a step; measured on one step before training."""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simzss.device import allocator

_GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Of a step on one device.

    Attributes:
        trainable: parameters that learn.
        frozen: parameters that do not.
        fixed: bytes of all parameters, and of the two moments that AdamW keeps of those that learn.
        live: most bytes that a step holds beside them at a time, gradients included.
        seconds: that it took; on an accelerator the second time, when its kernels are loaded.
    """

    trainable: int
    frozen: int
    fixed: int
    live: int
    seconds: float

    def gigabytes(self, times: float = 1.0) -> float:
        """Memory in GiB, with `times` as many images a step: what is live grows with them."""
        return (self.fixed + times * self.live) / _GIB

    def summary(self, crops: int, processes: int) -> str:
        """One line for the log."""
        where = "" if processes == 1 else f" on {processes} processes"
        return (
            f"trainable parameters: {self.trainable / 1e6:.2f} M, frozen: {self.frozen / 1e6:.1f} M; memory: "
            f"{self.gigabytes():.2f} GiB, of which {self.live / _GIB:.2f} for a step; a step of {crops} crops{where}: "
            f"{self.seconds:.2f} s"
        )


def measure_cost(model: nn.Module, learning: nn.Module, loss: Callable[[], Tensor]) -> Cost:
    """Run one step, forward and backward, and leave no trace of it: no gradient, no random number drawn.

    Args:
        model: all of it.
        learning: the part that learns.
        loss: makes the loss of a step.

    Returns:
        Its cost. Memory is that of the accelerator's allocator, or on a CPU that of all tensors alive at a time.
    """
    parameters = [parameter for parameter in learning.parameters() if parameter.requires_grad]
    device = parameters[0].device
    memory = allocator(device)
    with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
        if memory is not None:
            live, seconds = _allocated(loss, parameters, memory, device)
        else:
            live, seconds = _counted(loss, parameters)
    everything = list(model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in everything)
    frozen = sum(parameter.numel() for parameter in everything) - trainable
    return Cost(trainable, frozen, weights + 8 * trainable, live, seconds)


def _step(loss: Callable[[], Tensor], parameters: list[nn.Parameter]) -> None:
    # Not `backward`: under DDP that would start to exchange gradients.
    torch.autograd.grad(loss(), parameters, allow_unused=True)


def _allocated(
    loss: Callable[[], Tensor], parameters: list[nn.Parameter], memory: Any, device: torch.device
) -> tuple[int, float]:
    _step(loss, parameters)
    memory.synchronize(device)
    memory.reset_peak_memory_stats(device)
    before, start = memory.memory_allocated(device), time.perf_counter()
    _step(loss, parameters)
    memory.synchronize(device)
    return memory.max_memory_allocated(device) - before, time.perf_counter() - start


def _counted(loss: Callable[[], Tensor], parameters: list[nn.Parameter]) -> tuple[int, float]:
    start = time.perf_counter()
    with LiveBytes() as live:
        _step(loss, parameters)
    return live.peak, time.perf_counter() - start


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations make inside, as long as they are alive; `peak` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._watch((args, kwargs or {}), made=False)  # what was there before does not count
        out = func(*args, **(kwargs or {}))
        self._watch(out, made=True)
        return out

    def _watch(self, values: Any, made: bool) -> None:
        for leaf in tree_leaves(values):
            if not isinstance(leaf, Tensor) or leaf.untyped_storage()._cdata in self._known:
                continue
            storage = leaf.untyped_storage()
            size = storage.nbytes() if made else 0
            self._known.add(storage._cdata)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
