"""From settings to index: which tasks there are, which of them are to be done, and what became of them."""

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from simzss.errors import DataError, InputError
from simzss.progress import Bar

from .evaluation_photos import EvaluationImages, EvaluationPhotos
from .executors import Executor, Job, make_executor
from .index import Summary, write_index
from .output import OutputFolder
from .records import Source
from .repeats import find_repeats
from .settings import CaptionsSettings, LocalSettings, RaySettings
from .sources import open_source
from .task import annotate_task, drop_repeats_task
from .work import PipelineSettings, Work, describe_pipeline

FORMAT = 3  # raise when the same input and settings would give other bytes


class IncompleteError(DataError):
    """Some tasks could not be done; the others are finished."""


def prepare(settings: CaptionsSettings) -> Summary:
    """Write all shards that are still to be written, and the index.

    Raises:
        InputError: bad settings or input; nothing was written then that a later run could not use.
        IncompleteError: some tasks failed; the folder holds the others and an index that says so.
    """
    executor_settings = settings.executor
    accelerator = settings.parse_on_accelerator or (
        isinstance(executor_settings, RaySettings) and executor_settings.gpus > 0
    )
    if accelerator and isinstance(executor_settings, LocalSettings) and executor_settings.processes is None:
        executor_settings = executor_settings.replace(processes=1)  # they would share one accelerator's memory
    # A folder by its absolute path: a worker may have another working directory.
    name = str(Path(settings.spacy).absolute()) if _is_folder(settings.spacy) else settings.spacy
    pipeline = PipelineSettings(name, settings.parse_batch, accelerator)
    with closing(make_executor(executor_settings)) as executor:
        summary = _prepare(settings, pipeline, executor)
    if summary.failed:
        (name, reason), others = next(iter(summary.failed.items())), len(summary.failed) - 1
        what = reason if Path(name).name in reason else f"{name}: {reason}"
        more = f", and {others} more, listed in {settings.output}/index.json" if others else ""
        raise IncompleteError(f"{what}{more}; the other tasks are finished, run again to complete them")
    return summary


def _prepare(settings: CaptionsSettings, pipeline: PipelineSettings, executor: Executor) -> Summary:
    info = _describe(pipeline, executor)  # a wrong name, before anything is made
    filters = settings.filters
    with _naming_file():
        photos = EvaluationPhotos.find(filters.evaluation_roots) if filters.evaluation_roots else None
    with OutputFolder.open(settings.output, _recipe(settings, pipeline, info, photos)) as output:
        with _naming_file():
            source = open_source(settings, output.scratch)
            stamps = _compare(output, source, settings.changed)
        evaluation = None if photos is None else _hash_evaluation(output, photos, filters.evaluation_distance)
        work = Work(output, settings, pipeline, info, evaluation)
        failed = _annotate(source, stamps, work, executor)
        if filters.looks_for_duplicates:
            failed |= _drop_repeats(source, stamps, work, executor)
        sets = photos and {"sets": photos.found, "missing": sorted(photos.missing), "photos": len(photos.names)}
        summary = write_index(output, source, failed, {"pipeline": info, "evaluation": sets})
        if not summary.shards and not summary.failed:
            first = summary.first
            reason = f"{first.name}: {first.reason} {first.detail}".strip() if first else "no input"
            raise DataError(f"no readable image with a caption; first reason: {reason}")
    return summary


def _recipe(
    settings: CaptionsSettings, pipeline: PipelineSettings, info: dict[str, str], photos: EvaluationPhotos | None
) -> dict[str, Any]:
    """Return all that the bytes of the shards depend on besides the input."""
    return {
        "format": FORMAT,
        "pipeline": info | {"parse_batch": pipeline.batch_size, "accelerator": pipeline.accelerator},
        "layout": settings.layout,
        "columns": [settings.path_column, settings.caption_column, settings.image_column],
        "broken_tars": settings.broken_tars,
        "samples_per_shard": settings.samples_per_shard,
        "shard_megabytes": settings.shard_megabytes,
        "filters": settings.filters.plain() | {"evaluation_root": None},  # its photos count, wherever they are
        "photos below filters.evaluation_root": photos and photos.identity,
    }


def _describe(pipeline: PipelineSettings, executor: Executor) -> dict[str, str]:
    """Return name and versions of the pipeline, loaded in as many processes as will need it."""
    jobs = (Job(number, pipeline.name, pipeline) for number in range(executor.processes))
    info = {}
    for outcome in executor.run(describe_pipeline, jobs):
        if outcome.error is not None:
            raise InputError(outcome.error)
        info = outcome.result
    return info


def _compare(output: OutputFolder, source: Source, changed: str) -> list[str]:
    """Return the stamps of all tasks, of which those that are finished have had the same when they were done.

    Tasks whose input is another one now are refused, or forgotten with `changed=redo`, and so are those that the input
    no longer has. What a killed run left of them without a record is forgotten anyway.
    """
    stamps = []
    named: dict[int, str] = {}
    for task in source.tasks():
        stamps.append(task.stamp)
        record = output.finished(task.number)
        if record is not None and record["stamp"] != task.stamp:
            named[task.number] = task.name
    gone = sorted(number for number in output.numbers() if number >= len(stamps))
    named |= {n: f"task {n}, which the input no longer has" for n in gone if output.finished(n) is not None}
    if named and changed == "refuse":
        raise DataError(f"input changed since output={output.path} was written: {_shown(list(named.values()))}; "
                         "give another output=, or changed=redo to write these shards again")  # fmt: skip
    if named:
        print(f"input changed, to be written again: {_shown(list(named.values()))}", file=sys.stderr)
    _forget(output, {*named, *gone})
    return stamps


def _shown(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _forget(output: OutputFolder, numbers: Collection[int]) -> None:
    """Forget tasks, and before them the index that lists them.

    Here and not in a worker: one that a killed run left on another machine could take away what this run makes.
    """
    if numbers:
        output.forget_index()
    for number in numbers:
        output.forget(number)


def _hash_evaluation(output: OutputFolder, photos: EvaluationPhotos, distance: int) -> Path:
    """Write fingerprints of the evaluation photos to a file that every worker reads."""
    for name, reason in photos.missing.items():
        print(f"filters.evaluation_root: without {name}: {reason}", file=sys.stderr)
    path = output.tasks / "evaluation.npz"
    EvaluationImages.kept(path, photos, distance)
    return path


_Failed = dict[int, tuple[str, str]]
"""Name of each task that failed, and why, by number."""


def _annotate(source: Source, stamps: list[str], work: Work, executor: Executor) -> _Failed:
    """Write the shards of all tasks that have none."""
    output = work.output
    pending = {
        number
        for number in range(len(stamps))
        if output.finished(number) is None
        or (work.filters.looks_for_duplicates and not output.fingerprints(number).exists())
    }
    if finished := len(stamps) - len(pending):
        print(f"{finished} of {len(stamps)} tasks are finished already", file=sys.stderr)
    return _annotate_anew(source, stamps, work, executor, pending)


def _annotate_anew(
    source: Source, stamps: list[str], work: Work, executor: Executor, numbers: Collection[int]
) -> _Failed:
    _forget(work.output, numbers)
    changed: _Failed = {}

    def jobs() -> Iterator[Job]:
        for task in source.tasks() if numbers else ():
            if task.number in numbers:
                if task.stamp == stamps[task.number]:
                    yield Job(task.number, task.name, (task, work))
                else:
                    changed[task.number] = (task.name, "its input changed while it was read; run again")

    return _run(executor, annotate_task, jobs(), "annotation", len(numbers)) | changed


def _drop_repeats(source: Source, stamps: list[str], work: Work, executor: Executor) -> _Failed:
    """Write the shards of all tasks again that hold images which repeat others."""
    output = work.output
    repeats = find_repeats(output, stamps, work.filters)
    outdated = set()
    for number in range(len(stamps)):
        record = output.finished(number)
        if record is not None and record["repeats"] not in ("", repeats(number).digest()):
            # Decided before other tasks were there or had changed: what was dropped then may stay now.
            outdated.add(number)
    failed = _annotate_anew(source, stamps, work, executor, outdated)
    pending = []
    for number in range(len(stamps)):
        record = output.finished(number)
        if record is not None and record["repeats"] != repeats(number).digest():
            pending.append(number)

    def jobs() -> Iterator[Job]:
        for number in pending:
            record = output.finished(number)
            assert record is not None
            # Until the new one is there the shards may be neither these nor those.
            output.forget_index()
            output.record(number).unlink()
            yield Job(number, record["task"], (number, record, work, repeats(number)))

    return failed | _run(executor, drop_repeats_task, jobs(), "dropping repeated images", len(pending))


def _run(executor: Executor, function: Callable, jobs: Iterator[Job], description: str, total: int) -> _Failed:
    """Run jobs and return those that failed. On a full disk the rest is not tried for long."""
    failed: _Failed = {}
    full = captions = 0
    start = time.monotonic()

    def until_full() -> Iterator[Job]:
        for job in jobs:
            if full > 2 * executor.processes:
                failed[job.number] = (job.name, "not tried: the disk is full")
                bar.update()
            else:
                yield job

    with Bar(total, description, "tasks") as bar:
        for outcome in executor.run(function, until_full()):
            if outcome.error is not None:
                failed[outcome.number] = (outcome.name, outcome.error)
                full = full + 1 if outcome.no_space else 0
            else:
                full = 0
                captions += sum(shard["captions"] for shard in outcome.result["shards"])
                rate = captions / max(time.monotonic() - start, 1e-3)
                bar.set_postfix_str(f"{captions:,} captions, {rate:,.0f} a second", refresh=False)
            bar.update()
    return failed


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name too long for a file, or below a folder that cannot be entered
        return False


@contextmanager
def _naming_file() -> Iterator[None]:
    """Turn what the system refuses of the input into one line that names the file.

    Raises:
        DataError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or 'input'} cannot be read: {error.strerror or error}") from error
