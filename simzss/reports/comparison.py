"""Comparison of runs as JSON, Markdown and one self-contained HTML page."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from simzss.atomic import atomic_write
from simzss.errors import ConfigError
from simzss.reports.compare import Comparison, Difference
from simzss.reports.markdown import escaped, markdown_table
from simzss.reports.page import write_page
from simzss.reports.tables import Table

_TITLE = "Comparison of runs"


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write `comparison.json`, `.md` and `.html` into a folder.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(comparison), indent=2, ensure_ascii=False, allow_nan=False)
        atomic_write(folder / "comparison.json", (text + "\n").encode(errors="replace"))
        atomic_write(folder / "comparison.md", _markdown(comparison).encode(errors="replace"))
        write_page(
            folder / "comparison.html",
            "compare.html.j2",
            title=_TITLE,
            facts=_facts(comparison),
            sections=_sections(comparison),
            remark=_remark(comparison),
        )
    except OSError as error:
        raise ConfigError(f"output_dir={folder} cannot be written: {error}") from error


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
    """Return heading, table and notes of each compared run."""
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
