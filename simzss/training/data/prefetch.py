"""Batches made ready in a thread while the training step before them runs."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from simzss.training.data.batch import Batch


class Prefetched:
    """Batches made ready while the step before runs: built by a background thread, and copied to the device by it.

    On an accelerator the copies have a stream of their own, beside the computation. Each iteration has its own thread,
    which ends, with the iterator it reads from closed, when the batches are at an end, when the consumer drops the
    iterator, and when the program ends. An error of it is raised where its batch would have come.

    Args:
        make: gives the batches, anew for each iteration. Called by the consumer; the thread iterates.
        device: where the batches are to be.
        length: batches of an iteration, at most.
        depth: batches ready or in the making beyond the one that the consumer has; one is enough unless the time that
            they take to make varies.
    """

    def __init__(self, make: Callable[[], Iterator[Batch]], device: torch.device, length: int, depth: int = 1) -> None:
        self.make = make
        self.device = device
        self.length = length
        self.depth = depth

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        # Begun with the first batch: Lightning asks for an iterator once to see whether it can have one, and again
        # before the run's features are ready.
        yield from _Iteration(self.make(), self.device, self.length, self.depth)


def unwanted() -> bool:
    """Whether this is the thread of a consumer who has stopped: what takes long to make a batch asks in between."""
    stop = getattr(_local, "stop", None)
    return stop is not None and stop.is_set()


_local = threading.local()


@dataclass
class _Ready:
    """A batch, and the event after which it is on its device; None where it is there already."""

    batch: Batch
    event: torch.Event | None


class _End:
    """There are no more batches."""


@dataclass
class _Line:
    """Between thread and consumer: what is ready, how much more may be, and whether the consumer has stopped."""

    ready: "queue.SimpleQueue[_Ready | BaseException | _End]"
    room: threading.Semaphore
    stop: threading.Event


class _Iteration(Iterator[Batch]):
    """The consumer's end. The thread knows nothing of it, so that it can be dropped while the thread runs."""

    def __init__(self, batches: Iterator[Batch], device: torch.device, length: int, depth: int) -> None:
        self._device = device
        self._line = _Line(queue.SimpleQueue(), threading.Semaphore(depth), threading.Event())
        # Made here: this thread knows which of several devices is meant by one without a number.
        stream = _side_stream(device)
        # A daemon, or the program would wait for it before it lets `finalize` end it.
        thread = threading.Thread(
            target=_fill, args=(batches, device, stream, length, self._line), name="prefetch", daemon=True
        )
        self.close = weakref.finalize(self, _end, thread, self._line)
        thread.start()

    def __next__(self) -> Batch:
        if not self.close.alive:
            raise StopIteration
        try:
            ready = self._line.ready.get()
        except BaseException:  # the consumer was interrupted while it waited
            self.close()
            raise
        self._line.room.release()
        if isinstance(ready, _Ready):
            return self._arrived(ready)
        self.close()
        if isinstance(ready, BaseException):
            try:
                raise ready
            finally:
                del ready  # the error knows this frame: a circle that would keep both
        raise StopIteration

    def _arrived(self, ready: _Ready) -> Batch:
        """The batch, to be used on the consumer's stream as if it had been copied there."""
        if ready.event is not None:
            current = torch.accelerator.current_stream(self._device)
            current.wait_event(ready.event)

            def used(tensor: Tensor) -> Tensor:
                # Its memory belongs to the other stream, which must not have it back before this one is done with it.
                tensor.record_stream(current)
                return tensor

            ready.batch.map(used)
        return ready.batch


def _end(thread: threading.Thread, line: _Line) -> None:
    """Stop the thread and wait for it."""
    line.stop.set()
    line.room.release()
    if thread is not threading.current_thread():  # which may be the one that collects the garbage
        thread.join()


def _fill(
    batches: Iterator[Batch], device: torch.device, stream: torch.Stream | None, length: int, line: _Line
) -> None:
    """What the thread does."""
    _local.stop = line.stop
    try:
        with ExitStack() as stack:
            if hasattr(batches, "close"):
                stack.callback(batches.close)
            if stream is not None:
                torch.accelerator.set_stream(stream)  # of this thread alone
            for _ in range(length):
                line.room.acquire()
                if line.stop.is_set():
                    break
                batch = next(batches, None)
                if batch is None:
                    break
                batch = batch.to(device)
                line.ready.put(_Ready(batch, None if stream is None else stream.record_event()))
                del batch  # the consumer's alone
    except BaseException as error:
        line.ready.put(error)
    else:
        line.ready.put(_End())


def _side_stream(device: torch.device) -> torch.Stream | None:
    """A stream for copies; None on a CPU, and on an accelerator that does everything in one order."""
    if device.type == "cpu":
        return None
    try:
        return torch.Stream(device)
    except RuntimeError:
        return None
