"""How every program ends: on errors of its input, on those of the system, and on an interrupt."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any, NoReturn

from simzss.errors import InputError, printable


class Interrupted(KeyboardInterrupt):
    """An interrupt, with the words that tell how the work goes on."""


@contextmanager
def interruptible(hint: str) -> Iterator[None]:
    """Give an interrupt during the block the words that tell how the work goes on."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as error:
        raise Interrupted(hint) from error


# What libraries say, in errors of no type of their own, when the system fails them.
_WORKER = re.compile(r"worker\b.*(killed|exited unexpectedly)|process in the process pool was terminated", re.I | re.S)
_MEMORY = re.compile(r"out of memory|can't start new thread|(can't|cannot) allocate memory|bad allocation", re.I)
_FAILING = re.compile(r"\b(I/O error|No space left on device|Disk quota exceeded|Too many open files)", re.I)


def system_failure(error: BaseException) -> str | None:
    """Return one line about an error of the machine rather than of the program: its disk, memory or a lost process.

    Args:
        error: of any type; those that it was raised from are looked at as well.

    Returns:
        None for another error: a fault of the program, whose traceback is of use.
    """
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return None
        if (line := _failure(seen)) is not None:
            return line
        seen = seen.__cause__ or seen.__context__
    return None


def _failure(error: BaseException) -> str | None:
    text = printable(str(error))
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return f"not enough memory: {text[:200] or 'an allocation failed'}"
    if isinstance(error, OSError):
        where = ": ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        what = error.strerror or text or type(error).__name__
        return f"{where}: {what}" if where else what
    if _WORKER.search(text):
        return "a worker process was killed, mostly by the system for want of memory; fewer workers need less"
    if _FAILING.search(text):
        return text[:200]
    return None


def end_with_lost_batch(worker: int) -> None:
    """Let a decoding process end when it cannot hand over a batch: whoever waits for it would wait for ever.

    To be given to a `DataLoader` as its `worker_init_fn`. Out of files, for one, a batch does not fit the queue, whose
    thread only prints a traceback.

    Args:
        worker: number of the process.
    """

    def end(error: BaseException, batch: Any) -> None:
        print(f"decoding process {worker} ends: {printable(str(error))}", file=sys.stderr, flush=True)
        os._exit(1)

    Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


def run_program(main: Callable[[], None]) -> None:
    """Call `main` and end as a program should.

    An `InputError` is one line on stderr and exit code 2; a failure of the system, such as a full disk, one line and
    exit code 1; an interrupt a line and 130; a reader of the output that has gone, such as `head`, 141 without a word.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another character set shows what it can
    before = _end_at_second_interrupt()
    try:
        main()
        sys.stdout.flush()
        if before is not None:
            signal.signal(signal.SIGINT, before)
    except InputError as error:
        _end(2, f"error: {printable(str(error))}")
    except KeyboardInterrupt as error:
        _end(130, "interrupted" + (f": {error}" if isinstance(error, Interrupted) and str(error) else ""))
    except BrokenPipeError:
        # What is still in the buffer has nowhere to go: Python would complain when it flushes it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        line = system_failure(error)
        if line is None:
            raise
        _end(1, f"error: {printable(line)}")


def _end(code: int, line: str) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)


def _end_at_second_interrupt() -> Any:
    """Let a second Ctrl-C end the process at once, whatever is being cleaned up: what is finished is on the disk.

    Returns:
        The handler that was there before; None where it stays: a shell starts programs in the background with the
        signal ignored.
    """
    pressed, own = False, os.getpid()

    def interrupt(signum: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            if os.getpid() == own:  # processes that it has started have the handler too, and need no words
                os.write(2, b"interrupted\n")
            os._exit(130)
        pressed = True
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        return None
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
        return before
    return None
