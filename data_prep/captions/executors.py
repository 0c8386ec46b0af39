"""Run tasks in this process, in processes on this machine, or on a Ray cluster. The only ray import.

All take a function and jobs, keep a bounded number of jobs under way, and yield an outcome for each as it ends. A job
that fails takes no other with it.
"""

import errno
import logging
import math
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from simzss.errors import ConfigError, InputError
from simzss.extras import need

from .settings import ExecutorSettings, LocalSettings, RaySettings

# Ray asks the clouds' metadata services which one it is in, whatever its settings: what it starts gets a proxy that
# is not there.
_NO_WAY_OUT = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
_WAITING = 2  # jobs for each process: one under way and one that is ready when it ends
_NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quota error


@dataclass(frozen=True)
class Job:
    """One call of a function.

    Attributes:
        number: of the task.
        name: of the task.
        argument: sent to the process that does it.
    """

    number: int
    name: str
    argument: Any


@dataclass(frozen=True)
class Outcome:
    """Result of a job, or the reason why it has none.

    Attributes:
        number: of the task.
        name: of the task.
        result: what the function returned.
        error: why it returned nothing.
        no_space: the disk is full, which the next job will find as well.
    """

    number: int
    name: str
    result: Any = None
    error: str | None = None
    no_space: bool = False


class Executor(Protocol):
    """Runs jobs, several at once."""

    @property
    def processes(self) -> int:
        """Return the number of jobs at once."""

    def run(self, function: Callable[[Any], Any], jobs: Iterator[Job]) -> Iterator[Outcome]:
        """Yield outcomes in the order in which jobs end; `function` is importable by name where it runs."""

    def close(self) -> None:
        """End what was started for the jobs."""


def make_executor(settings: ExecutorSettings) -> Executor:
    """Return the executor of the settings; `close` it in the end.

    Raises:
        InputError: Ray not installed or not reached, or no machine of its cluster fits.
    """
    if isinstance(settings, RaySettings):
        return RayExecutor(settings)
    if isinstance(settings, LocalSettings):
        return LocalExecutor(settings.processes or usable_cores())
    return SerialExecutor()


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attempt(function: Callable[[Any], Any], job: Job) -> Outcome:
    """Do a job where it runs; whatever goes wrong becomes its outcome."""
    try:
        return Outcome(job.number, job.name, function(job.argument))
    except InputError as error:
        return Outcome(job.number, job.name, error=str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        reason = f"{error.strerror or error}{where}"
        return Outcome(job.number, job.name, error=reason, no_space=error.errno in _NO_SPACE)
    except Exception as error:
        # One sample that nobody foresaw must not end the preparation of a million others.
        return Outcome(job.number, job.name, error=f"{type(error).__name__}: {error}")


class SerialExecutor:
    """This process, one job after the other."""

    processes = 1

    def run(self, function: Callable[[Any], Any], jobs: Iterator[Job]) -> Iterator[Outcome]:
        """Run jobs, see `Executor.run`."""
        return (attempt(function, job) for job in jobs)

    def close(self) -> None:
        """Do nothing: nothing was started."""


class LocalExecutor:
    """Processes on this machine, each with one computing thread; until `close` they keep what they have loaded."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[[Any], Any], jobs: Iterator[Job]) -> Iterator[Outcome]:
        """Run jobs; when a process dies, those under way are tried again, one after the other."""
        under_way: dict[Future[Outcome], Job] = {}
        suspects: deque[Job] = deque()
        try:
            while True:
                alone = bool(suspects)  # nobody knows whose job killed the process: by itself it shows
                room = self.processes * _WAITING - len(under_way)
                starting = [] if alone and under_way else [suspects.popleft()] if alone else list(islice(jobs, room))
                for job in starting:
                    under_way[self._submit(function, job)] = job
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    job = under_way.pop(future)
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        if alone and starting:
                            yield Outcome(job.number, job.name, error="its process died (out of memory?)")
                        else:
                            suspects.append(job)
        finally:
            for future in under_way:
                future.cancel()

    def close(self) -> None:
        """End the processes, once they have ended their jobs."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _submit(self, function: Callable[[Any], Any], job: Job) -> Future[Outcome]:
        """Give a job to the pool, or to a new one where there is none or a process of it has died."""
        if self._pool is not None:
            try:
                return self._pool.submit(attempt, function, job)
            except BrokenProcessPool:
                self._pool.shutdown(wait=False)
        # Processes at work side by side: more threads in each would only take turns. Read when the child starts.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # Fresh processes: a fork of a program that has started threads can hang.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self.processes, mp_context=context, initializer=_end_with_parent)
        return self._pool.submit(attempt, function, job)


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, killed or not: nobody would read its results."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches it too: it ends without a traceback of its own
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _require_answer(address: str | None) -> None:
    """Refuse HOST:PORT where nobody listens: Ray would try for minutes."""
    found = re.fullmatch(r"([^:/]+):(\d+)", address or "")
    if found:
        try:
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(f"executor.address={address}: no Ray cluster is reached: {error}") from error


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables of the environment during the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class RayExecutor:
    """Tasks on a Ray cluster; Ray starts a task again whose machine is lost."""

    def __init__(self, settings: RaySettings) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a program reports nothing home unasked
        if settings.address is None and "ray" not in sys.modules:
            # Ray's way to stay on the loopback: else it asks the network for an address of this machine, and listens
            # there without a password to whatever it is sent.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        self._ray = need("ray", "ray")
        self._resources = {"num_cpus": settings.cpus, "num_gpus": settings.gpus}
        _require_answer(settings.address)
        self._connect(settings)
        offered = self._offered(settings)
        if offered < 1:
            raise ConfigError(f"executor.cpus={settings.cpus:g} executor.gpus={settings.gpus:g}: no machine of the Ray "
                              "cluster has so many")  # fmt: skip
        self.processes = min(offered, settings.processes or offered)

    def _connect(self, settings: RaySettings) -> None:
        """Start or join a cluster, unless this process is in one already."""
        if self._ray.is_initialized():
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if settings.address is None:  # "local": a cluster that the environment names is not meant
            options |= {"num_cpus": settings.processes, "include_dashboard": False}
        try:
            with _environment({} if settings.address else _NO_WAY_OUT):
                self._ray.init(address=settings.address or "local", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"executor.address={settings.address}: no Ray cluster is reached: {error}") from error

    def _offered(self, settings: RaySettings) -> int:
        """Count the tasks that fit at once.

        By machine: a task is on one of them, and Ray would wait for ever for one that fits.
        """
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(
            int(
                min(
                    machine.get("CPU", 0) / settings.cpus,
                    machine.get("GPU", 0) / settings.gpus if settings.gpus else math.inf,
                )
            )
            for machine in machines
        )

    def run(self, function: Callable[[Any], Any], jobs: Iterator[Job]) -> Iterator[Outcome]:
        """Run jobs, see `Executor.run`."""
        ray = self._ray
        remote = ray.remote(**self._resources)(attempt)
        under_way: dict[Any, Job] = {}
        while True:
            for job in islice(jobs, self.processes * _WAITING - len(under_way)):
                under_way[remote.remote(function, job)] = job
            if not under_way:
                return
            (ready,), _ = ray.wait(list(under_way), num_returns=1)
            job = under_way.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[0]
                yield Outcome(job.number, job.name, error=f"{type(error).__name__}: {reason}")

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()
