"""Draws the faults, does them in as many processes as there are cores, and counts what came of them."""

import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from simzss.atomic import atomic_write
from simzss.errors import DataError
from simzss.settings.base import Settings
from simzss.settings.program import parse
from tests.faults.damage import STORED, damaged, expected
from tests.faults.kinds import KINDS, NEEDS_MOUNT, Fault, Kind, Verdict
from tests.faults.warm import import_everything
from tests.faults.world import World

DAMAGE = {"flipped bit": 45, "file cut off": 15}
"""How often each kind of file is damaged in a whole campaign."""

OUTCOMES = ("survived", "lost", "silent", "traceback", "hang")


class CampaignSettings(Settings):
    """Inject faults and count what came of them."""

    share: float = 1.0
    """of the faults of each kind and target; at least one of each"""
    only: str = ""
    """kinds and targets in whose name this is"""
    seed: int = 0
    """of the draws"""
    output: Path = Path("outputs/faults.md")
    """gets the table; every fault that was not survived lies beside it as .json"""


def draw(share: float, only: str = "", seed: int = 0) -> Iterator[Fault]:
    """Yield the faults of a campaign."""
    for kind, (_, targets, count) in KINDS.items():
        if kind in NEEDS_MOUNT and os.geteuid() != 0:
            continue  # only the administrator mounts
        for target in targets:
            yield from _drawn(kind, target, count, share, only, seed)
    for kind, count in DAMAGE.items():
        for target in STORED:
            yield from _drawn(kind, target, count, share, only, seed)


def _drawn(kind: str, target: str, count: int, share: float, only: str, seed: int) -> Iterator[Fault]:
    if only in f"{kind}: {target}":
        yield from (Fault(kind, target, 10_000 * seed + number) for number in range(max(1, round(share * count))))


def inject(faults: Sequence[Fault], folder: Path) -> list[tuple[Fault, Verdict]]:
    """Make the world in a folder, do every fault to it in a copy, and return what came of each."""
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    import_everything()
    world = World.make(folder / "world")
    for target, stored in STORED.items():
        if stored.read is not None and any(fault.target == target for fault in faults):
            expected(world, target, folder)
    context = multiprocessing.get_context("fork")
    processes = min(len(faults), os.cpu_count() or 1)
    workers = [context.Process(target=_share, args=(world, faults, number, processes)) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = {}
    for number in range(processes):
        for line in (world.folder / f"{number}.jsonl").read_text(encoding="utf-8").splitlines():
            index, outcome, reason = json.loads(line)
            found[index] = Verdict(outcome, reason)
    return [(fault, found.get(index, Verdict("lost", "the campaign itself"))) for index, fault in enumerate(faults)]


def _share(world: World, faults: Sequence[Fault], first: int, step: int) -> None:
    with (world.folder / f"{first}.jsonl").open("w", encoding="utf-8", buffering=1) as lines:
        for index in range(first, len(faults), step):
            home = world.folder.parent / f"fault-{index}"
            home.mkdir()
            try:
                verdict = _function(faults[index].kind)(world, faults[index], home)
            except Exception as error:  # of the campaign itself, which goes on with the other faults
                verdict = Verdict("lost", f"the campaign fails: {type(error).__name__}: {error}")
            lines.write(json.dumps([index, verdict.outcome, verdict.reason]) + "\n")
            shutil.rmtree(home, ignore_errors=True)


def _function(kind: str) -> Kind:
    return damaged if kind in DAMAGE else KINDS[kind][0]


def table(found: Sequence[tuple[Fault, Verdict]]) -> str:
    """Return the counts by kind as Markdown."""
    counts: dict[str, Counter[str]] = {}
    for fault, verdict in found:
        counts.setdefault(fault.kind, Counter())[verdict.outcome] += 1
    counts["together"] = sum(counts.values(), Counter())
    lines = [f"| fault | injected | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 2) + "|"]
    for kind, counted in counts.items():
        cells = [kind, f"{counted.total():,}", *(f"{counted[outcome]:,}" for outcome in OUTCOMES)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Run a campaign and write its table.

    Raises:
        DataError: a fault that was not survived.
    """
    settings = parse(CampaignSettings, list(arguments))
    faults = list(draw(settings.share, settings.only, settings.seed))
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="simzss-faults-"))
    try:
        found = inject(faults, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    failed = [(fault, verdict) for fault, verdict in found if verdict.outcome != "survived"]
    minutes, place = (time.monotonic() - began) / 60, f"{os.cpu_count()} cores, {platform.machine()}"
    text = f"{table(found)}\n\nseed {settings.seed}, {minutes:.1f} minutes on {place}\n"
    print(text)
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(settings.output, text.encode())
    details = [fault.__dict__ | verdict.__dict__ for fault, verdict in failed]
    atomic_write(settings.output.with_suffix(".json"), (json.dumps(details, indent=1) + "\n").encode())
    if failed:
        raise DataError(
            f"{len(failed)} of {len(found)} faults were not survived: see {settings.output.with_suffix('.json')}"
        )
