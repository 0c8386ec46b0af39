"""Curves of a training run: read from its log, and laid out as inline SVG.

The SVG is written here rather than by a plotting library to let the page's own colours and fonts apply to it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Curve:
    """One chart with any number of lines.

    Attributes:
        title: heading of the chart.
        x_label: what the horizontal axis counts.
        series: name of a line to its x and y values, two lists of equal length. Values that are not finite are left
            out.
    """

    title: str
    x_label: str
    series: dict[str, tuple[list[float], list[float]]]


# ----------------------------------------------------------------------------------------------------- curves


def curves_from_csv(path: Path) -> list[Curve]:
    """Read the metrics.csv of pytorch-lightning's CSVLogger into charts.

    Every logged column becomes a line over the column `step` (else `epoch`, else the row number). A cell that is empty
    or no finite number is a gap: the line runs over the rows that have a value. The losses share a chart, so do the
    scores `val/miou/*` and the learning rates; of the other columns those of one group (`a/b/*`) share one.

    Args:
        path: CSV file with a header line.

    Returns:
        Charts with at least one value, losses first, then scores, learning rate, and the others by name.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in (None, "", "epoch", "step")] if rows else []
    x_name = next((name for name in ("step", "epoch") if rows and name in rows[0]), None)
    charts: dict[tuple[int, str], dict[str, tuple[list[float], list[float]]]] = {}
    for name in names:
        points = _column(rows, x_name, name)
        if points:
            rank, title, label = _placed(name)
            charts.setdefault((rank, title), {})[label] = ([x for x, _ in points], [y for _, y in points])
    return [Curve(title, x_name or "row", series) for (_, title), series in sorted(charts.items(), key=lambda c: c[0])]


def _column(rows: Sequence[Mapping[str, str | None]], x_name: str | None, name: str) -> list[tuple[float, float]]:
    """Return the (x, y) points of one column in the order of x."""
    points = []
    for number, row in enumerate(rows):
        x = float(number) if x_name is None else _parsed(row[x_name])
        y = _parsed(row[name])
        if x is not None and y is not None:
            points.append((x, y))
    # A resumed run logs some steps again, further down.
    return sorted(points, key=lambda point: point[0])


def _parsed(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _bounded(value: float) -> float:
    """Return a value between the bounds within which sums, differences and logarithms of a chart are finite."""
    if abs(value) < 1 / _LARGEST:
        return 0.0
    return min(max(value, -_LARGEST), _LARGEST)


def _placed(name: str) -> tuple[int, str, str]:
    """Return the rank and title of the chart that shows a logged column, and the column's label there."""
    parts = name.split("/")
    if name.startswith("val/miou"):
        return 1, "Validation mIoU (%)", "/".join(parts[2:]) or name
    if any(word.startswith("loss") or word.endswith("loss") for word in parts[-1].split("_")):
        return 0, "Loss", name
    if parts[0] == "lr" or parts[0].startswith("lr-") or parts[-1] in ("lr", "learning_rate"):
        return 2, "Learning rate", name
    if len(parts) > 2:
        return 3, "/".join(parts[:-1]), parts[-1]
    return 3, name, name


# ----------------------------------------------------------------------------------------------------- charts

# Geometry in SVG user units. The drawing is small so that its text is still readable when a phone scales it down.
_WIDTH, _HEIGHT = 420, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 8, 34
_MAX_POINTS = 240  # per line; about the number of distinguishable columns
_DOTS_UP_TO = 40  # points per line that are marked one by one
_STYLES = 8  # line colours in the style sheet
_LARGEST = 1e200  # of what is drawn


def chart(curve: Curve) -> dict[str, Any] | None:
    """Return the geometry of a chart for the template; None if there is nothing to draw."""
    lines = {name: line for name, (x, y) in curve.series.items() if (line := _points(curve.title, name, x, y))}
    if not lines:
        return None
    thinned = {name: _thinned(line) for name, line in lines.items()}
    x_values = [x for line in lines.values() for x, _ in line]  # not thinned: the axis starts where the run does
    y_values = [y for line in thinned.values() for _, y in line]
    x_ticks, y_ticks = _ticks(x_values), _ticks(y_values)
    x_low, x_high = _span(x_values)
    y_low, y_high = _span([*y_values, *(y for y, _ in y_ticks)])

    def at(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    return {
        "title": curve.title,
        "x_label": curve.x_label,
        "size": (_WIDTH, _HEIGHT),
        "frame": (_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM),
        "x_ticks": [(f"{at(x):.1f}", label) for x, label in x_ticks if x_low <= x <= x_high],
        "y_ticks": [(f"{up(y):.1f}", label) for y, label in y_ticks],
        "lines": [
            {
                "name": name,
                "style": f"s{i % _STYLES}" + (" dashed" if i >= _STYLES else ""),
                "points": " ".join(f"{at(x):.1f},{up(y):.1f}" for x, y in line),
                "dots": [(f"{at(x):.1f}", f"{up(y):.1f}", f"{_number(x)}: {_number(y)}") for x, y in line]
                if len(line) <= _DOTS_UP_TO
                else [],
                "last": _number(lines[name][-1][1]),
            }
            for i, (name, line) in enumerate(thinned.items())
        ],
        "averaged": any(len(lines[name]) > len(thinned[name]) for name in lines),
    }


def _points(title: str, name: str, x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    if len(x) != len(y):
        raise ValueError(f"curve {title!r}, line {name!r}: {len(x)} x values but {len(y)} y values")
    finite = ((float(a), float(b)) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b))
    return [(_bounded(a), _bounded(b)) for a, b in finite]


def _thinned(line: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbouring points until the line has at most the maximum number."""
    size = -(-len(line) // _MAX_POINTS)
    groups = [line[start : start + size] for start in range(0, len(line), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis that holds all values, never of zero length."""
    low, high = min(values), max(values)
    margin = max(0.5, 1e-6 * abs(low))  # of a value so large that 0.5 is nothing to it
    return (low, high) if high > low else (low - margin, high + margin)


def _ticks(values: Sequence[float]) -> list[tuple[float, str]]:
    """Return four to seven round positions from just below to just above the values, with their labels."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # constant: nothing to resolve, one tick names the value
        return [(low, _number(low))]
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    largest = max(abs(first), abs(last)) * step
    return [(i * step, _tick_label(i * step, step, largest)) for i in range(first, last + 1)]


def _tick_label(value: float, step: float, largest: float) -> str:
    """Return a label in the notation that suits all ticks of the axis, with the digits that the step needs."""
    if value == 0:
        return "0"
    if largest >= 1e6 or largest < 0.01:
        return _exponential(value)
    if largest >= 10_000:
        return f"{value / 1000:.6g}k"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    whole = abs(step * 10**digits - round(step * 10**digits)) < 1e-6  # a step of 2.5, 0.25, ... needs one digit more
    return f"{value:.{digits if whole else digits + 1}f}"


def _number(value: float) -> str:
    """Return a single value with four significant digits."""
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return _exponential(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _exponential(value: float) -> str:
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
