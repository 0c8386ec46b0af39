"""Prefetching: a background thread builds batches and copies them to the device while the step before runs."""

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
    """Iterable of batches that a background thread builds and copies to the device.

    On an accelerator the copies have a stream of their own, beside the computation. Each iteration has its own thread,
    which ends, with the iterator it reads from closed, when the batches are at an end, when the consumer drops the
    iterator, and when the program ends. An error of it is raised where its batch would have come.

    Args:
        make: returns an iterator of batches for each iteration. Called by the consumer; the thread iterates.
        device: of the batches.
        length: batches of an iteration, at most.
    """

    def __init__(self, make: Callable[[], Iterator[Batch]], device: torch.device, length: int) -> None:
        self.make = make
        self.device = device
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        # Begun with the first batch: Lightning asks for an iterator once to see whether it can have one, and again
        # before the run's features are ready.
        yield from _Iteration(self.make(), self.device, self.length)


def is_stopped() -> bool:
    """Tell whether the consumer of this thread has stopped: what takes long to build a batch asks in between."""
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
class _Channel:
    """Between thread and consumer: what is ready, how much more may be, and whether the consumer has stopped."""

    ready: "queue.SimpleQueue[_Ready | BaseException | _End]"
    room: threading.Semaphore
    stop: threading.Event


class _Iteration(Iterator[Batch]):
    """The consumer's end. The thread holds no reference to it, so that it can be dropped while the thread runs."""

    def __init__(self, batches: Iterator[Batch], device: torch.device, length: int) -> None:
        self._device = device
        # One batch is ready or in the making beyond the one that the consumer has.
        self._channel = _Channel(queue.SimpleQueue(), threading.Semaphore(1), threading.Event())
        # Made here: this thread knows which of several devices is meant by one without a number.
        stream = _side_stream(device)
        # A daemon, or the program would wait for it before it lets `finalize` end it.
        thread = threading.Thread(
            target=_fill, args=(batches, device, stream, length, self._channel), name="prefetch", daemon=True
        )
        self.close = weakref.finalize(self, _end, thread, self._channel)
        thread.start()

    def __next__(self) -> Batch:
        if not self.close.alive:
            raise StopIteration
        try:
            ready = self._channel.ready.get()
        except BaseException:  # the consumer was interrupted while it waited
            self.close()
            raise
        self._channel.room.release()
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
        """Return the batch for use on the consumer's stream, as if it had been copied there."""
        if ready.event is not None:
            current = torch.accelerator.current_stream(self._device)
            current.wait_event(ready.event)

            def used(tensor: Tensor) -> Tensor:
                # Its memory belongs to the other stream, which must not have it back before this one is done with it.
                tensor.record_stream(current)
                return tensor

            ready.batch.map(used)
        return ready.batch


def _end(thread: threading.Thread, channel: _Channel) -> None:
    """Stop the thread and wait for it."""
    channel.stop.set()
    channel.room.release()
    if thread is not threading.current_thread():  # which may be the one that collects the garbage
        thread.join()


def _fill(
    batches: Iterator[Batch], device: torch.device, stream: torch.Stream | None, length: int, channel: _Channel
) -> None:
    """Fill the channel: the thread's function."""
    _local.stop = channel.stop
    try:
        with ExitStack() as stack:
            if hasattr(batches, "close"):
                stack.callback(batches.close)
            if stream is not None:
                torch.accelerator.set_stream(stream)  # of this thread alone
            for _ in range(length):
                channel.room.acquire()
                if channel.stop.is_set():
                    break
                batch = next(batches, None)
                if batch is None:
                    break
                batch = batch.to(device)
                channel.ready.put(_Ready(batch, None if stream is None else stream.record_event()))
                del batch  # the consumer's alone
    except BaseException as error:
        channel.ready.put(error)
    else:
        channel.ready.put(_End())


def _side_stream(device: torch.device) -> torch.Stream | None:
    """Return a stream for copies; None on a CPU, and on an accelerator without streams."""
    if device.type == "cpu":
        return None
    try:
        return torch.Stream(device)
    except RuntimeError:
        return None
