"""A program in a forked child: started, disturbed, and judged by how it ended."""

import atexit
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from simzss.cli import main

PATIENCE = 90  # seconds until a program counts as hanging


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        code: its exit code; negative: the signal that ended it; None: it hung.
        text: what it wrote.
        seconds: that it took.
    """

    code: int | None
    text: str
    seconds: float

    @property
    def fault(self) -> str | None:
        """Return what is wrong with this end, whatever was done to the program: a hang, a traceback, no word."""
        if self.code is None:
            return "hang"
        if "Traceback (most recent call last)" in self.text or "Exception ignored" in self.text:
            return "traceback"
        if self.code not in (0, -signal.SIGKILL, -signal.SIGTERM) and not self.says:
            return "traceback"  # it ended without a word
        return None

    @property
    def says(self) -> str:
        """Return the line on which it ended; the system's and Rust's libraries abort on one, without memory."""
        words = ("error: ", "interrupted", "memory allocation of ", "cannot allocate memory ")
        lines = [line for line in self.text.splitlines() if line.startswith(words)]
        return lines[-1] if lines else ""


class Child:
    """A forked process in a group of its own that runs `work` and writes to a log."""

    def __init__(self, work: Callable[[], None], log: Path) -> None:
        self.log = log
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(work, log)

    def processes(self) -> list[psutil.Process]:
        """Return the processes that it has started."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: int, everyone: bool = False) -> None:
        """Send a signal, also to the processes that it has started, as a terminal does."""
        with suppress(ProcessLookupError):
            (os.killpg if everyone else os.kill)(self.pid, number)

    def ended(self) -> int | None:
        """Return the exit code when it has ended."""
        if not hasattr(self, "_code"):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == 0:
                return None
            self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, patience: float = PATIENCE) -> Ended:
        """Wait for its end; what hangs is killed, and so is what it left running."""
        while self.ended() is None and time.monotonic() - self.began < patience:
            time.sleep(0.005)
        code, seconds = self.ended(), time.monotonic() - self.began
        self.signal(signal.SIGKILL, everyone=True)
        if code is None:
            os.waitpid(self.pid, 0)
        return Ended(code, self.log.read_text(encoding="utf-8", errors="replace"), seconds)


def program(arguments: Sequence[str], limit: Callable[[], None] | None = None) -> Callable[[], None]:
    """Return the work of a child that runs a verb under limits."""

    def work() -> None:
        if limit is not None:
            limit()
        main(list(arguments))

    return work


def run(arguments: Sequence[str], log: Path) -> Ended:
    """Run a verb undisturbed."""
    return Child(program(arguments), log).wait()


def _become(work: Callable[[], None], log: Path) -> None:
    """Be a program of its own until the end: what the fork inherited of another one is put right."""
    code = 1
    try:
        os.setpgid(0, 0)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(target, descriptor)
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        atexit._clear()
        import multiprocessing.util

        atexit.register(multiprocessing.util._exit_function)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
