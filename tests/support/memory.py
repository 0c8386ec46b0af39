"""Memory that a function takes, measured in a process of its own."""

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any


def peak_of(function: Callable[[], Any]) -> int:
    """Bytes that a forked process needs at most for a call, above what it had before; the call's error is raised."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def measure() -> None:
        before, error = _resident(), None
        try:
            function()
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
        sender.send((1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error))

    process = context.Process(target=measure)
    process.start()
    peak, error = receiver.recv()
    process.join()
    assert error is None, error
    return int(peak)


def _resident() -> int:
    with open("/proc/self/statm") as stream:  # noqa: PTH123
        return int(stream.read().split()[1]) * resource.getpagesize()
