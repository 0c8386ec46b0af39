"""Reports as Markdown: results, comparison with published systems, protocol; for a README, an issue, a diff."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from simzss.atomic import atomic_write
from simzss.errors import printable
from simzss.reports.published import published_notes, published_sources, published_table
from simzss.reports.report import Report
from simzss.reports.tables import Protocol, Table, protocols

_LISTED = 8  # phrases of a list, such as prompt templates; results.json has them all


def write_markdown(path: Path, report: Report) -> None:
    """Write results, published comparison, protocol and notes of a report; pictures, bars and curves are left out.

    Args:
        path: file to write; missing parent directories are created, an existing file is replaced.
        report: the content, as for `write_report`.
    """
    parts = [f"# {escaped(report.title)}"]
    if report.summary:
        parts.append("\n".join(f"- {escaped(label)}: {escaped(value)}" for label, value in report.summary))
    tables = [("Scores", report.scores), *report.tasks]
    for heading, table in tables:
        if table:
            parts += [f"## {heading}", markdown_table(table)]
    if report.scores and report.against:
        pairs = "; ".join(f"{escaped(name)} against {escaped(baseline)}" for name, baseline in report.against)
        parts.append(f"Baselines: {pairs}.")
    parts += _published(report)
    found = protocols(report.results)
    if found:
        parts += ["## Protocol", *(_protocol(protocol) for protocol in found)]
    if report.notes:
        parts += ["## Notes", *(escaped(note) for note in report.notes)]
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, ("\n\n".join(parts) + "\n").encode(errors="replace"))


def markdown_table(table: Table) -> str:
    """Format a table in pipes, names to the left and numbers to the right."""
    width = len(table.columns)
    lines = [_row(table.columns), f"| --- |{' ---: |' * (width - 1)}"]
    lines += [_row([*row, *[""] * (width - len(row))]) for row in table.rows]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Escape text on one line: Markdown then shows what would start markup, HTML or a table cell."""
    line = printable(str(text))
    line = re.sub(r"([\\`*\[<|~])", r"\\\1", line)
    # An underscore inside a word, as in coco_object, is no markup; a reference such as &lt; needs its ampersand.
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)
    line = re.sub(r"&(?=#?\w+;)", r"\\&", line)
    # At the start of a line: quotation, list, heading, rule or underline of a heading, numbered list.
    line = re.sub(r"^(?=>|[-+](?:\s|$)|#{1,6}(?:\s|$)|-{2,}$|=+$)", r"\\", line)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"


def _published(report: Report) -> list[str]:
    shown = report.shown
    table = published_table(shown, report.published)
    if table is None:
        return []
    lines = [*published_notes(shown, report.published), *published_sources(shown, report.published)]
    return [
        "## Published systems",
        markdown_table(table),
        "mIoU in per cent. The figures of other systems are those their authors report, under their own protocols; "
        "“unverified” ones have not been looked up in the source.",
        "\n".join(f"- {escaped(line)}" for line in lines),
    ]


def _protocol(protocol: Protocol) -> str:
    names = ", ".join(escaped(name) for name in protocol.names)
    return "\n".join([f"{names}:", "", *(f"- {escaped(key)}: {_value(value)}" for key, value in protocol.rows)])


def _value(value: str) -> str:
    phrases = value.split("\n")
    if len(phrases) == 1:
        return escaped(value)
    shown = "; ".join(escaped(phrase) for phrase in phrases[:_LISTED])
    return shown + (f"; … ({len(phrases)} in all)" if len(phrases) > _LISTED else "")
