"""The program from arguments to index: which tasks there are, which of them are to be done, and what became of them."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from data_prep.captions.duplicates import EvaluationImages, EvaluationPhotos
from data_prep.captions.executors import Executor, Job, make_executor
from data_prep.captions.filters import Filters
from data_prep.captions.index import Summary, write_index
from data_prep.captions.output import OutputFolder, opened
from data_prep.captions.progress import Progress
from data_prep.captions.records import Source
from data_prep.captions.repeats import Repeats, find_repeats, has_fingerprints, no_repeats
from data_prep.captions.sources import SourceSettings, open_source
from data_prep.captions.task import PipelineSettings, Work, annotate_task, fingerprint_task, load_pipeline
from simzss.config import compose, fill, help_text, require_complete, to_plain
from simzss.errors import InputError

FORMAT = 2  # raise when the same input and settings would give other bytes


@dataclass(frozen=True)
class ExecutorSettings:
    """`conf/executor`."""

    kind: str
    processes: int | None = None
    address: str | None = None
    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True)
class CaptionsSettings:
    """What `conf/captions.yaml` holds besides its groups and the source."""

    output: str
    spacy: str
    parse_batch: int
    parse_on_accelerator: bool
    samples_per_shard: int
    shard_megabytes: float
    changed: str

    def __post_init__(self) -> None:
        for name in ("parse_batch", "samples_per_shard", "shard_megabytes"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}={getattr(self, name)} must be above 0")
        if self.changed not in ("refuse", "redo"):
            raise InputError(f"changed={self.changed} must be refuse or redo")


class IncompleteError(InputError):
    """Some tasks could not be done; the others are finished."""


def main() -> None:
    """Read arguments, prepare, report."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(help_text("captions"))
        return
    config = compose("captions", arguments)
    require_complete(config)
    plain = to_plain(config)
    settings = fill(CaptionsSettings, _part(plain, CaptionsSettings))
    summary = prepare(
        settings,
        fill(SourceSettings, _part(plain, SourceSettings) | {"samples_per_task": settings.samples_per_shard}),
        fill(Filters, plain["filters"], "filters."),
        fill(ExecutorSettings, plain["executor"], "executor."),
    )
    _report(settings.output, summary)


def prepare(
    settings: CaptionsSettings, source_settings: SourceSettings, filters: Filters, executor_settings: ExecutorSettings
) -> Summary:
    """Write all shards that are still to be written, and the index.

    Raises:
        InputError: bad settings or input; nothing was written then that a later run could not use.
        IncompleteError: some tasks failed; the folder holds the others and an index that says so.
    """
    accelerator = settings.parse_on_accelerator or executor_settings.gpus > 0
    if accelerator and executor_settings.processes is None and executor_settings.kind == "local":
        executor_settings = replace(executor_settings, processes=1)  # they would share one accelerator's memory
    pipeline = PipelineSettings(settings.spacy, settings.parse_batch, accelerator)
    info = load_pipeline(pipeline).info  # a wrong name is found before anything is made
    photos = EvaluationPhotos.find(filters.evaluation_roots) if filters.evaluation_roots else None
    recipe = {
        "format": FORMAT,
        "pipeline": info | {"parse_batch": settings.parse_batch},
        "layout": source_settings.layout,
        "columns": [source_settings.path_column, source_settings.caption_column, source_settings.image_column],
        "broken_tars": source_settings.broken_tars,
        "samples_per_shard": settings.samples_per_shard,
        "shard_megabytes": settings.shard_megabytes,
        "filters": asdict(replace(filters, evaluation_root=None)),
        "evaluation photos": photos and photos.stamp,
    }
    with opened(Path(settings.output), recipe) as output:
        source = open_source(source_settings, output.scratch)
        evaluation = None if photos is None else _hash_evaluation(output, photos, filters)
        work = Work(output, source_settings, pipeline, filters, evaluation, settings.samples_per_shard,
                    round(settings.shard_megabytes * 1e6))  # fmt: skip
        _refuse_changed(output, source, settings.changed)
        executor = make_executor(**asdict(executor_settings))
        failed: dict[str, str] = {}
        repeats: Callable[[int], Repeats] = no_repeats
        if filters.exact_duplicates != "keep" or filters.near_duplicates is not None:
            failed |= _fingerprints(output, source, work, executor)
            repeats = find_repeats(output, len(source), filters)
        failed |= _annotate(output, source, work, executor, repeats, set(failed))
        summary = write_index(output, source, failed, info)
        if not summary.shards and not failed:
            first = summary.first
            reason = f"{first.name}: {first.reason} {first.detail}".strip() if first else "no input"
            raise InputError(f"no readable image with a caption; first reason: {reason}")
    if failed:
        (name, reason), others = next(iter(failed.items())), len(failed) - 1
        more = f", and {others} more, listed in {output.index}" if others else ""
        raise IncompleteError(f"{name}: {reason}{more}; the other tasks are finished, run again to complete them")
    return summary


def _hash_evaluation(output: OutputFolder, photos: EvaluationPhotos, filters: Filters) -> Path:
    """Fingerprints of the evaluation photos, in a file that every worker reads."""
    for name, reason in photos.missing.items():
        print(f"filters.evaluation_root: without {name}: {reason}", file=sys.stderr)
    print(f"{len(photos.names)} evaluation photos are looked for", file=sys.stderr)
    path = output.tasks / "evaluation.npz"
    EvaluationImages.kept(path, photos, filters.evaluation_distance)
    return path


def _refuse_changed(output: OutputFolder, source: Source, changed: str) -> None:
    """Find finished tasks whose input is another one now; with `changed=redo` they are forgotten."""
    named: list[str] = []
    for task in source.tasks():
        record = output.finished(task.number)
        if record is not None and record["stamp"] != task.stamp:
            if changed == "redo":
                output.forget(task.number)
            named.append(task.name)
    for number in sorted(number for number in output.numbers() if number >= len(source)):
        if changed == "redo":
            output.forget(number)
        named.append(f"task {number}, which the input no longer has")
    if not named:
        return
    what = f"{named[0]}" + (f" and {len(named) - 1} more" if len(named) > 1 else "")
    if changed == "refuse":
        raise InputError(f"input changed since output={output.path} was written: {what}; "
                         "give another output=, or changed=redo to write these shards again")  # fmt: skip
    print(f"input changed, to be written again: {what}", file=sys.stderr)


def _fingerprints(output: OutputFolder, source: Source, work: Work, executor: Executor) -> dict[str, str]:
    """First pass: fingerprints of all images; the failed tasks by name."""
    pending = {task.number for task in source.tasks() if not has_fingerprints(output, task)}
    jobs = (Job(task.number, task.name, (task, work)) for task in source.tasks() if task.number in pending)
    return _run(executor, fingerprint_task, jobs, Progress("fingerprints of images", len(pending)))


def _annotate(
    output: OutputFolder,
    source: Source,
    work: Work,
    executor: Executor,
    repeats: Callable[[int], Repeats],
    without: set[str],
) -> dict[str, str]:
    """Write the shards of all tasks that have none; the failed tasks by name."""
    pending = set()
    for task in source.tasks():
        record = output.finished(task.number)
        if record is None or record["repeats"] != repeats(task.number).digest():
            pending.add(task.number)
    # Here and not in a worker: one that a killed run left on another machine could take away what this run makes.
    for number in pending:
        output.forget(number)
    if pending:
        output.index.unlink(missing_ok=True)
    jobs = (
        Job(task.number, task.name, (task, work, repeats(task.number)))
        for task in source.tasks()
        if task.number in pending and task.name not in without
    )
    if finished := len(source) - len(pending):
        print(f"{finished} of {len(source)} tasks are finished already", file=sys.stderr)
    return _run(executor, annotate_task, jobs, Progress("annotation", len(pending)))


def _run(executor: Executor, function: Callable, jobs: Iterator[Job], progress: Progress) -> dict[str, str]:
    """Run jobs; the failed ones by name. On a full disk the rest is not tried for long."""
    failed: dict[str, str] = {}
    full = 0

    def until_full() -> Iterator[Job]:
        for job in jobs:
            if full > 2 * executor.processes:
                failed[job.name] = "not tried: the disk is full"
            else:
                yield job

    for outcome in executor.run(function, until_full()):
        if outcome.error is not None:
            failed[outcome.name] = outcome.error
            full = full + 1 if outcome.no_space else 0
            progress.add()
        else:
            full = 0
            progress.add(sum(shard["captions"] for shard in (outcome.result or {}).get("shards", ())))
    return failed


def _report(output: str, summary: Summary) -> None:
    print(f"{output}: {summary.total('samples')} images, {summary.total('captions')} captions, "
          f"{summary.total('concepts')} concepts in {len(summary.shards)} shards")  # fmt: skip
    for kind, counts in (("images", summary.images), ("captions", summary.captions)):
        for reason, count in counts.most_common():
            print(f"left out: {count} {kind}: {reason}")
    if summary.first is not None:
        print(f"each is listed in {output}/skipped.jsonl")


def _part(plain: dict[str, Any], cls: type) -> dict[str, Any]:
    """The values of a composed configuration that a dataclass takes."""
    return {field.name: plain[field.name] for field in fields(cls) if field.name in plain}
