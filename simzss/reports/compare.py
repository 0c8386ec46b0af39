"""`simzss report`: differences between runs of `simzss eval`, with intervals from a paired bootstrap over images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from simzss import config as conf
from simzss.errors import InputError
from simzss.evaluation.bootstrap import bootstrap_differences, percentile_interval
from simzss.evaluation.counts import Counts, counts_file, load_counts, miou
from simzss.reports.markdown import escaped, markdown_table
from simzss.reports.page import write_page
from simzss.reports.tables import Table, finite, kind

__all__ = [
    "Comparison",
    "Difference",
    "NotCompared",
    "check_settings",
    "compare_counts",
    "compare_runs",
    "run_comparison",
]

_NAMES = ("plain", "engineered")
_MOST_RESAMPLES = 1_000_000
_ROUNDING = 0.01  # per cent points: results.json may have been rounded, but is not of another measurement


@dataclass(frozen=True)
class Difference:
    """One benchmark in two runs, on the images that both have.

    Attributes:
        run: folder of the run that is compared.
        benchmark: its name.
        names: class names that were used, `plain` or `engineered`.
        reference_miou: of the reference, per cent.
        run_miou: of the run, per cent.
        difference: run - reference, per cent points.
        low: lower end of the interval of the difference.
        high: upper end.
        images: how many both have.
        only_reference: images that only the reference has, left out.
        only_run: images that only the run has, left out.
        other_truth: images of both whose number of truth pixels of some class differs: measured against other masks.
    """

    run: str
    benchmark: str
    names: str
    reference_miou: float
    run_miou: float
    difference: float
    low: float
    high: float
    images: int
    only_reference: int
    only_run: int
    other_truth: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class NotCompared:
    """A benchmark that only one run has, or that has nothing to compare."""

    run: str
    benchmark: str
    names: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Every run against the first."""

    reference: str
    resamples: int
    seed: int
    confidence: float
    differences: tuple[Difference, ...]
    not_compared: tuple[NotCompared, ...]


# ------------------------------------------------------------------------------------------------ the command


def run_comparison(config: DictConfig, runs: list[Path]) -> Comparison:
    """Compare as configured; writes `comparison.json`, `.md` and `.html` into the output folder.

    Raises:
        InputError: fewer than two runs, one that is no output folder of `simzss eval`, bad settings, or nothing that
            can be compared.
    """
    conf.require_complete(config)
    plain: dict[str, Any] = conf.to_plain(config)
    check_settings(plain)
    comparison = compare_runs(runs, plain["resamples"], plain["seed"], plain["confidence"])
    output = Path(plain["output_dir"])
    content = asdict(comparison)
    try:
        output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        (output / "comparison.json").write_text(text + "\n", encoding="utf-8", errors="replace")
        (output / "comparison.md").write_text(_markdown(comparison), encoding="utf-8", errors="replace")
        write_page(
            output / "comparison.html",
            "compare.html.j2",
            title=_TITLE,
            facts=_facts(comparison),
            sections=_sections(comparison),
            remark=_remark(comparison),
        )
    except OSError as error:
        raise InputError(f"output_dir={output} cannot be written: {error}") from error
    return comparison


def check_settings(plain: Mapping[str, Any]) -> None:
    """Refuse settings that no comparison can be made with.

    Raises:
        InputError: names the key.
    """
    if not 1 <= plain["resamples"] <= _MOST_RESAMPLES:
        raise InputError(f"resamples={plain['resamples']} must lie in 1..{_MOST_RESAMPLES}")
    if not 0 <= plain["seed"] < 2**63:
        raise InputError(f"seed={plain['seed']} must lie in 0..{2**63 - 1}")
    if not 0 < plain["confidence"] < 1:
        raise InputError(f"confidence={plain['confidence']} must lie between 0 and 1")


def compare_runs(runs: list[Path], resamples: int, seed: int, confidence: float) -> Comparison:
    """Compare every benchmark and names column of each run with the first run's.

    Raises:
        InputError: see `run_comparison`.
    """
    if len(runs) < 2:
        raise InputError("give two runs or more: simzss report RUN RUN… output_dir=DIR")
    results = [_read_results(run) for run in runs]
    differences: list[Difference] = []
    not_compared: list[NotCompared] = []
    for run, found in zip(runs[1:], results[1:], strict=True):
        for benchmark, names in _columns(results[0], found):
            reason = _reason(runs[0], results[0], run, found, benchmark, names)
            if reason is None:
                paths = [counts_file(folder, benchmark, names) for folder in (runs[0], run)]
                first, second = (
                    _read_counts(path, folder, _score(result, benchmark, names))
                    for path, folder, result in zip(paths, (runs[0], run), (results[0], found), strict=True)
                )
                if first.classes != second.classes:
                    raise InputError(f"{paths[0]} and {paths[1]} have {_class_difference(first, second)}")
                numbers = compare_counts(first, second, resamples, seed, confidence)
                if numbers is not None:
                    differences.append(Difference(str(run), benchmark, names, **numbers))
                    continue
                reason = "no image that counts is in both"
            not_compared.append(NotCompared(str(run), benchmark, names, reason))
    if not differences:
        why = f": {not_compared[0].benchmark}, {not_compared[0].reason}" if not_compared else ""
        raise InputError(f"{' and '.join(map(str, runs))} have no benchmark to compare{why}")
    return Comparison(str(runs[0]), resamples, seed, confidence, tuple(differences), tuple(not_compared))


def compare_counts(
    reference: Counts, run: Counts, resamples: int, seed: int, confidence: float
) -> dict[str, Any] | None:
    """The numbers of a `Difference`, on the images that both have; None if these have no pixel that counts."""
    places = [{name: i for i, name in enumerate(counts.images)} for counts in (reference, run)]
    # In the order of their names, so that the draws do not depend on the order in which the files list them.
    common = sorted(places[0].keys() & places[1].keys())
    first, second = (
        counts.per_image[torch.tensor([place[name] for name in common], dtype=torch.int64)]
        for counts, place in zip((reference, run), places, strict=True)
    )
    if not bool(first[:, :, 2].any() & second[:, :, 2].any()):
        return None
    before, after = miou(first.sum(dim=0)), miou(second.sum(dim=0))
    low, high = percentile_interval(bootstrap_differences(first, second, resamples, seed), confidence)
    return {
        "reference_miou": before,
        "run_miou": after,
        "difference": after - before,
        "low": low,
        "high": high,
        "images": len(common),
        "only_reference": len(reference.images) - len(common),
        "only_run": len(run.images) - len(common),
        "other_truth": int((first[:, :, 2] != second[:, :, 2]).any(dim=1).sum()),
    }


# ------------------------------------------------------------------------------------------------- reading runs


def _read_results(run: Path) -> dict[str, dict[str, Any]]:
    path = run / "results.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist: {run} is no output folder of simzss eval")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(result, dict) for result in content.values()):
        raise InputError(f"{path} holds no results of simzss eval")
    return content


def _score(results: Mapping[str, Mapping[str, Any]], benchmark: str, names: str) -> float | None:
    """mIoU of a benchmark with these class names; None where there is none."""
    result = results.get(benchmark, {})
    if kind(result) != "segmentation":
        return None
    column = result if names == "plain" else result.get("engineered")
    return finite(column.get("mIoU")) if isinstance(column, Mapping) else None


def _columns(*results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Every benchmark and names column that any of the runs has a score for, in the order of the first."""
    for benchmark in dict.fromkeys(name for found in results for name in found):
        for names in _NAMES:
            if any(_score(found, benchmark, names) is not None for found in results):
                yield benchmark, names


def _reason(
    reference: Path,
    reference_results: Mapping[str, Mapping[str, Any]],
    run: Path,
    results: Mapping[str, Mapping[str, Any]],
    benchmark: str,
    names: str,
) -> str | None:
    """Why a column cannot be compared, None if it can.

    Raises:
        InputError: one run keeps the counts of the column, the other has lost them.
    """
    for folder, found in ((reference, reference_results), (run, results)):
        if _score(found, benchmark, names) is None:
            missing = found.get(benchmark, {}).get("missing")
            return f"not measured by {folder}" + (f": {missing}" if missing else "")
    paths = [counts_file(folder, benchmark, names) for folder in (reference, run)]
    absent = [path for path in paths if not path.is_file()]
    if len(absent) == 1:
        raise InputError(f"counts {absent[0]} do not exist: measure that run again by simzss eval")
    # Both alike: an evaluation keeps no counts of some results, such as those of the untrained model.
    return f"neither run keeps counts: {paths[0].name}" if absent else None


def _read_counts(path: Path, run: Path, score: float | None) -> Counts:
    counts = load_counts(path)
    value = miou(counts.per_image.sum(dim=0))
    if score is None or not abs(value - score) <= _ROUNDING:
        raise InputError(
            f"counts {path} give mIoU {value:.2f} but {run / 'results.json'} says {score}: of different measurements"
        )
    return counts


def _class_difference(first: Counts, second: Counts) -> str:
    if len(first.classes) != len(second.classes):
        return f"different classes: {len(first.classes)} and {len(second.classes)} of them"
    pair = next((a, b) for a, b in zip(first.classes, second.classes, strict=True) if a != b)
    return f"different classes: {pair[0]!r} and {pair[1]!r} in the same place"


# ---------------------------------------------------------------------------------------------------- showing

_TITLE = "Comparison of runs"


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    return [
        ("reference", comparison.reference),
        ("resamples", f"{comparison.resamples:,}"),
        ("seed", str(comparison.seed)),
        ("confidence", f"{100 * comparison.confidence:g} %"),
    ]


def _remark(comparison: Comparison) -> str:
    return (
        "mIoU in per cent on the images that both runs have; difference = run − reference in per cent points. The "
        f"interval holds {100 * comparison.confidence:g} % of the differences on resamples of the images, the same for "
        "both runs: it tells what another choice of photos might give, not what another training seed would."
    )


def _sections(comparison: Comparison) -> list[tuple[str, Table, list[str]]]:
    """Heading, table and notes of each compared run."""
    sections = []
    runs = [item.run for item in comparison.differences] + [item.run for item in comparison.not_compared]
    for run in dict.fromkeys(runs):
        here = [item for item in comparison.differences if item.run == run]
        absent = [item for item in comparison.not_compared if item.run == run]
        columns = ("Benchmark", "Class names", "Reference\nmIoU", "Run\nmIoU", "Difference")
        interval = f"{100 * comparison.confidence:g} %\ninterval"
        rows = [
            (
                item.benchmark,
                item.names,
                f"{item.reference_miou:.2f}",
                f"{item.run_miou:.2f}",
                _signed(item.difference),
                f"{_signed(item.low)} … {_signed(item.high)}",
                "yes" if item.excludes_zero else "no",
                f"{item.images:,}",
            )
            for item in here
        ]
        rest = [(item.benchmark, f"{item.names} names not compared: {item.reason}") for item in absent]
        table = Table((*columns, interval, "Excludes 0", "Images"), (*rows, *rest), emphasis=(4,))
        sections.append((run, table, [note for item in here for note in _notes(comparison.reference, item)]))
    return sections


def _notes(reference: str, item: Difference) -> Iterator[str]:
    if item.only_reference or item.only_run:
        yield (
            f"{item.benchmark}, {item.names} names: left out {item.only_reference:,} images that only {reference} has "
            f"and {item.only_run:,} that only {item.run} has."
        )
    if item.other_truth:
        yield (
            f"{item.benchmark}, {item.names} names: {item.other_truth:,} of {item.images:,} images have other truth "
            "pixels in the two runs, which were measured against different masks."
        )


def _signed(value: float) -> str:
    text = f"{value:+.2f}".replace("-", "−")
    return text if text.strip("+−0.") else "0.00"


def _markdown(comparison: Comparison) -> str:
    parts = [f"# {_TITLE}", "\n".join(f"- {escaped(label)}: {escaped(value)}" for label, value in _facts(comparison))]
    for run, table, notes in _sections(comparison):
        parts += [f"## {escaped(run)}", markdown_table(table)]
        if notes:
            parts.append("\n".join(f"- {escaped(note)}" for note in notes))
    return "\n\n".join([*parts, escaped(_remark(comparison))]) + "\n"
