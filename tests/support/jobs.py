"""Functions that the executors' tests run in other processes."""

import errno
import os
import signal
import time
from pathlib import Path

from simzss.errors import InputError


def square(number):
    return number * number


def fail(kind):
    """Raise the error that is asked for; return anything else."""
    if kind == "input":
        raise InputError("in.tar: bad")
    if kind == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.tar")
    if kind == "bug":
        raise ZeroDivisionError("of nothing")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return kind


def threads(_):
    return os.environ["OMP_NUM_THREADS"], os.getpid()


def beat(path):
    """Write the time into a file again and again, for a minute."""
    for _ in range(600):
        Path(f"{path}/{os.getpid()}").write_text(str(time.time()))
        time.sleep(0.1)
