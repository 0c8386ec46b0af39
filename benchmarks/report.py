"""Tables for people and JSON for programs, of one benchmark."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts import Part, Peaks


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; numbers to three digits."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(shown, cells))} |" for cells in lines)


def shown(value: Any) -> str:
    """Return the text of a cell."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def peaks_text(peaks: Peaks) -> str:
    """Return the measured peaks of the machine in a line."""
    return (
        f"Measured peaks: {peaks.towers / 1e12:.3g} TFLOP/s (towers), {peaks.full / 1e12:.3g} TFLOP/s (float32), "
        f"{peaks.bandwidth / 1e9:.3g} GB/s."
    )


def parts_table(parts: Sequence[Part]) -> str:
    """Return a table of each part beside its floor, and each kind of step as a whole."""
    rows: list[list[Any]] = []
    for step in dict.fromkeys(part.step for part in parts):
        own = [part for part in parts if part.step == step]
        rows += [[step, p.name, p.seconds, p.flops / 1e9, p.bytes / 1e9, p.floor, p.ratio] for p in own]
        seconds, floor = sum(p.seconds for p in own), sum(p.floor for p in own)
        totals = [sum(p.flops for p in own) / 1e9, sum(p.bytes for p in own) / 1e9]
        rows.append([step, "**all**", seconds, *totals, floor, seconds / floor])
    return table(["step", "part", "seconds", "GFLOP", "GB", "floor, seconds", "times the floor"], rows)


def write_report(base: Path, title: str, machine: str, sections: Mapping[str, str], content: Mapping[str, Any]) -> None:
    """Write `base`.md and `base`.json."""
    base.parent.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join([f"# {title}", machine, *(f"## {name}\n\n{body}" for name, body in sections.items())])
    base.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    record = json.dumps({"machine": machine, **content}, indent=2)
    base.with_suffix(".json").write_text(record + "\n", encoding="utf-8")
