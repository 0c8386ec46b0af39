"""Where tasks run: this process, processes on this machine, or a Ray cluster. The only ray import.

All take a function and jobs, keep a bounded number of jobs under way, and give an outcome for each, as they end. A job
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
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from simzss.errors import InputError

_WAITING = 2  # jobs for each process: one under way and one that is ready when it ends
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Job:
    """One call: `argument` is sent to the process that does it, `number` and `name` are the task's."""

    number: int
    name: str
    argument: Any


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its result, or the reason why it has none.

    `no_space` says that the disk is full, which the next job will find as well.
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
        """Jobs at once."""

    def run(self, function: Callable[[Any], Any], jobs: Iterator[Job]) -> Iterator[Outcome]:
        """Outcomes in the order in which jobs end. `function` is importable by name where it runs."""

    def close(self) -> None:
        """End what was started for the jobs."""


def make_executor(kind: str, processes: int | None, address: str | None, cpus: float, gpus: float) -> Executor:
    """The executor of `conf/executor`.

    Raises:
        InputError: a number of processes or cores that cannot be, Ray not installed or not reached.
    """
    if processes is not None and processes < 1:
        raise InputError(f"executor.processes={processes} must be at least 1")
    if cpus <= 0 or gpus < 0:
        raise InputError(f"executor.cpus={cpus} must be above 0 and executor.gpus={gpus} not below")
    if kind == "serial":
        return SerialExecutor()
    if kind not in ("local", "ray"):
        raise InputError(f"executor.kind={kind} must be serial, local or ray")
    if kind == "local":
        return LocalExecutor(processes or len(os.sched_getaffinity(0)))
    return RayExecutor(address, processes, cpus, gpus)


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
        """As `Executor.run`."""
        return (attempt(function, job) for job in jobs)

    def close(self) -> None:
        """Nothing was started."""


class LocalExecutor:
    """Processes on this machine, each with one computing thread; until `close` they keep what they have loaded."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[[Any], Any], jobs: Iterator[Job]) -> Iterator[Outcome]:
        """As `Executor.run`; when a process dies, the jobs under way are tried again, one after the other."""
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
            raise InputError(f"executor.address={address}: no Ray cluster is reached: {error}") from error


class RayExecutor:
    """Tasks on a Ray cluster; Ray starts a task again whose machine is lost."""

    def __init__(self, address: str | None, processes: int | None, cpus: float, gpus: float) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a program reports nothing home unasked
        try:
            import ray
        except ImportError as error:
            raise InputError("executor=ray needs Ray: pip install 'simzss[ray]'") from error
        _require_answer(address)
        self._ray = ray
        self._resources = {"num_cpus": cpus, "num_gpus": gpus}
        if not ray.is_initialized():
            try:
                options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
                if address is None:  # "local": a cluster that the environment names is not meant
                    options |= {"num_cpus": processes, "include_dashboard": False}
                ray.init(address=address or "local", **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"executor.address={address}: no Ray cluster is reached: {error}") from error
        # By machine: a task is on one of them, and Ray would wait for ever for one that fits.
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        offered = sum(
            int(min(machine.get("CPU", 0) / cpus, machine.get("GPU", 0) / gpus if gpus else math.inf))
            for machine in machines
        )
        if offered < 1:
            raise InputError(f"executor.cpus={cpus} executor.gpus={gpus}: no machine of the Ray cluster has so many")
        self.processes = min(offered, processes or offered)

    def run(self, function: Callable[[Any], Any], jobs: Iterator[Job]) -> Iterator[Outcome]:
        """As `Executor.run`."""
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
