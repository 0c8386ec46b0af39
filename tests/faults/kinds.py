"""What is done to programs, and how it is told whether they survived."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.process import Child, Ended, program
from tests.faults.world import Job, World, digests

VERBS = ("train", "train-masks", "cache", "captions", "eval", "segment", "threshold", "report")


@dataclass(frozen=True)
class Fault:
    """One fault: of a kind, done to a target (a verb, or a kind of file), drawn by a seed."""

    kind: str
    target: str
    seed: int


@dataclass(frozen=True)
class Verdict:
    """What came of a fault: `survived`, or `lost`, `traceback`, `hang`, `silent` with the reason."""

    outcome: str
    reason: str = ""


SURVIVED = Verdict("survived")


def judged(job: Job, output: Path, home: Path, *ends: Ended) -> Verdict:
    """Judge how disturbed programs ended, then let the work go on: it must end as an undisturbed run does."""
    for ended in ends:
        if ended.fault:
            return Verdict(ended.fault, ended.text[-1500:])
    again = Child(program(job.again(output)), home / "again.log").wait()
    if again.fault:
        return Verdict(again.fault, f"going on: {again.text[-1500:]}")
    if again.code != 0:
        return Verdict("lost", f"going on ends with {again.code}: {again.says}; before: {[end.says for end in ends]}")
    found = digests(output)
    if found != job.expected:
        changed = sorted(name for name in found.keys() | job.expected if found.get(name) != job.expected.get(name))
        return Verdict("lost", f"other files than undisturbed: {changed}; before: {[end.says for end in ends]}")
    return SURVIVED


def killed(world: World, fault: Fault, home: Path) -> Verdict:
    """Kill a program at a random moment, half of the time once more when it goes on."""
    rng, job, output = random.Random(repr(fault)), world.jobs[fault.target], home / "out"
    ends = []
    for arguments in (job.command(output), job.again(output))[: rng.randint(1, 2)]:
        child = Child(program(arguments), home / "log")
        time.sleep(rng.uniform(0, job.seconds))
        child.signal(signal.SIGKILL, everyone=True)
        ends.append(child.wait())
    return judged(job, output, home, *ends)


def killed_over_finished(world: World, fault: Fault, home: Path) -> Verdict:
    """Kill a program that repeats finished work: what was there before is there, or there again."""
    rng, job = random.Random(repr(fault)), world.jobs[fault.target]
    output = _copied(world.folder / job.name, home / "out")
    child = Child(program(job.again(output)), home / "log")
    time.sleep(rng.uniform(0, job.seconds))
    child.signal(signal.SIGKILL, everyone=True)
    return judged(job, output, home, child.wait())


def interrupted(world: World, fault: Fault, home: Path) -> Verdict:
    """Press Ctrl-C once or twice, or send SIGTERM."""
    rng, job, output = random.Random(repr(fault)), world.jobs[fault.target], home / "out"
    child = Child(program(job.command(output)), home / "log")
    time.sleep(rng.uniform(0.1, 0.1 + job.seconds))
    kind = fault.seed % 3
    for number in ([signal.SIGINT], [signal.SIGINT, signal.SIGINT], [signal.SIGTERM])[kind]:
        child.signal(number, everyone=True)
        time.sleep(rng.uniform(0, 0.2))
    ended = child.wait()
    if ended.code not in (0, 130, -signal.SIGTERM, 143) and not ended.fault:
        return Verdict("traceback", f"ended with {ended.code}: {ended.text[-500:]}")
    return judged(job, output, home, ended)


def full_disk(world: World, fault: Fault, home: Path) -> Verdict:
    """Give less room on the disk than the output takes, then room enough."""
    rng, job = random.Random(repr(fault)), world.jobs[fault.target]
    with disk(home, round(rng.uniform(0.02, 0.98) * job.size) + 8192) as room:
        ended = Child(program(job.command(room / "out")), home / "log").wait()
        _mount(room, "remount,size=1g")
        return judged(job, room / "out", home, ended)


def file_limit(world: World, fault: Fault, home: Path) -> Verdict:
    """Let the system refuse files above a size, or more open files than some."""
    rng, job, output = random.Random(repr(fault)), world.jobs[fault.target], home / "out"
    if fault.seed % 2:
        number = rng.randrange(12, 64)

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
    else:
        size = rng.randrange(1, max(2, job.size))

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return judged(job, output, home, Child(program(job.command(output), limit), home / "log").wait())


def memory_limit(world: World, fault: Fault, home: Path) -> Verdict:
    """Give a little more memory than the program has when it starts."""
    rng, job, output = random.Random(repr(fault)), world.jobs[fault.target], home / "out"
    more = rng.randrange(1 << 20, 300 << 20)

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    return judged(job, output, home, Child(program(job.command(output), limit), home / "log").wait())


def read_only(world: World, fault: Fault, home: Path) -> Verdict:
    """Make the disk read-only at a random moment, from the start for some."""
    rng, job = random.Random(repr(fault)), world.jobs[fault.target]
    with disk(home, 1 << 30) as room:
        started = fault.seed % 2
        if not started:
            _mount(room, "remount,ro")
        child = Child(program(job.command(room / "out")), home / "log")
        while started and child.ended() is None:
            time.sleep(rng.uniform(0, job.seconds / 2))
            # Refused by the system while a file is open for writing: tried again.
            if _mount(room, "remount,ro", check=False):
                break
        ended = child.wait()
        _mount(room, "remount,rw")
        return judged(job, room / "out", home, ended)


def removed_folder(world: World, fault: Fault, home: Path) -> Verdict:
    """Remove the output folder while the program runs."""
    rng, job, output = random.Random(repr(fault)), world.jobs[fault.target], home / "out"
    child = Child(program(job.command(output)), home / "log")
    time.sleep(rng.uniform(0, job.seconds))
    shutil.rmtree(output, ignore_errors=True)
    ended = child.wait()
    if ended.code != 0:
        shutil.rmtree(output, ignore_errors=True)  # a file may have been made in it while it was being removed
    return judged(job, output, home, ended)


def killed_worker(world: World, fault: Fault, home: Path) -> Verdict:
    """Kill a process that decodes, in programs that have one."""
    rng, job, output = random.Random(repr(fault)), world.jobs[fault.target], home / "out"
    key = "num_workers=1" if fault.target in ("eval", "threshold") else "data.num_workers=1"
    child = Child(program([*job.command(output), key]), home / "log")
    moment = rng.uniform(0, 0.1)
    while child.ended() is None:
        workers = [one for one in child.processes() if one.is_running()]
        if workers:
            time.sleep(moment)
            for worker in workers:
                try:
                    worker.kill()
                except Exception:
                    continue
            break
        time.sleep(0.002)
    return judged(job, output, home, child.wait())


def two_runs(world: World, fault: Fault, home: Path) -> Verdict:
    """Start the same program twice in one folder."""
    rng, job, output = random.Random(repr(fault)), world.jobs[fault.target], home / "out"
    first = Child(program(job.command(output)), home / "log")
    time.sleep(rng.uniform(0, job.seconds))
    second = Child(program(job.command(output)), home / "log2")
    ends = [second.wait(), first.wait()]
    if not any(end.code == 0 for end in ends) and not any(end.fault for end in ends):
        return Verdict("lost", f"neither of two runs ends well: {[end.says for end in ends]}")
    return judged(job, output, home, *ends)


def no_temporary_files(world: World, fault: Fault, home: Path) -> Verdict:
    """Give a full folder of temporary files."""
    job, output = world.jobs[fault.target], home / "out"
    with disk(home, 4096) as room:
        (room / "filler").write_bytes(b"x" * 4096)

        def limit() -> None:
            import tempfile

            os.environ["TMPDIR"] = str(room)
            tempfile.tempdir = None

        ended = Child(program(job.command(output), limit), home / "log").wait()
        return judged(job, output, home, ended)


@contextmanager
def disk(home: Path, size: int) -> Iterator[Path]:
    """Mount a file system in memory; only the system's administrator can."""
    room = home / "disk"
    room.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", room], check=True)
    try:
        yield room
    finally:
        subprocess.run(["umount", "-l", room], check=True)


def _mount(room: Path, options: str, check: bool = True) -> bool:
    return subprocess.run(["mount", "-o", options, room], check=check, capture_output=True).returncode == 0


def _copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target, symlinks=True)
    for config in target.glob("config.yaml"):  # as if the run had been made here
        config.write_bytes(config.read_bytes().replace(str(folder).encode(), str(target).encode()))
    return target


Kind = Callable[[World, Fault, Path], Verdict]

_DECODING = ("train", "cache", "eval", "threshold")
KINDS: dict[str, tuple[Kind, tuple[str, ...], int]] = {
    "killed": (killed, VERBS, 12),
    "killed over finished work": (killed_over_finished, VERBS, 4),
    "Ctrl-C, Ctrl-C twice, SIGTERM": (interrupted, VERBS, 6),
    "disk full": (full_disk, VERBS, 6),
    "limits of files": (file_limit, VERBS, 4),
    "limit of memory": (memory_limit, VERBS, 2),
    "read-only disk": (read_only, VERBS, 2),
    "output folder removed": (removed_folder, VERBS, 2),
    "no room for temporary files": (no_temporary_files, VERBS, 1),
    "worker killed": (killed_worker, _DECODING, 4),
    "two runs in one folder": (two_runs, VERBS, 2),
}
"""What is done, to which programs, and how often to each in a whole campaign."""

NEEDS_MOUNT = {"disk full", "read-only disk", "no room for temporary files"}
