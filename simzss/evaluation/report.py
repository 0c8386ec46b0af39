"""One self-contained HTML page about a run: scores, per-class bars, training curves, overlays, protocol.

The page loads nothing: styles and pictures are inlined and the curves are inline SVG, so that it can be mailed,
archived and read offline, in light and dark, on a phone. The SVG is written here rather than by a plotting library to
let the page's own colours and fonts apply to it.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

__all__ = ["Curve", "Overlay", "Report", "curves_from_csv", "write_report"]

_TEMPLATE = "report.html.j2"
_MISSING = "–"
_MAX_PICTURE_WIDTH = 1600  # px: enough for three photos side by side, keeps a page with many overlays mailable
_WIDE_PICTURE = 1.9  # width / height from which an overlay gets a whole row
_OPEN_CLASSES = 40  # longer lists of classes start folded


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


@dataclass(frozen=True)
class Overlay:
    """A finished picture to show.

    Attributes:
        benchmark: heading under which it appears.
        name: name of the photo.
        image: the picture as it shall appear, any mode; wider than 1600 px it is scaled down.
        caption: a sentence below it, may be empty.
    """

    benchmark: str
    name: str
    image: Image.Image
    caption: str = ""


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes:
        title: heading of the page.
        summary: key facts (label, value) in reading order.
        results: as in results.json: result name to {"mIoU", "aAcc": per cent or None, "per_class": class name to IoU in
            per cent or None where the class does not occur, "images": count, "protocol": nested settings}.
        baselines: result name to the name of the result that it is compared with.
        curves: charts of the training.
        overlays: pictures, shown grouped by benchmark.
        notes: remarks, one paragraph each.
    """

    title: str
    summary: list[tuple[str, str]] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    baselines: dict[str, str] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    overlays: list[Overlay] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_report(path: Path, report: Report) -> None:
    """Write the report as one self-contained HTML file.

    Sections without content are left out. All text is escaped. A result that serves only as a baseline has no row and
    no bars of its own; it appears next to the results that it is compared with.

    Args:
        path: HTML file to write; missing parent directories are created, an existing file is replaced.
        report: the content.

    Raises:
        ValueError: if a curve's x and y lists differ in length.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    compared = [name for name in report.results if not _only_baseline(name, report.baselines)]
    html = template.render(
        title=report.title,
        summary=report.summary,
        rows=[_headline(name, report) for name in compared],
        any_baseline=any(name in report.baselines for name in compared),
        classes=[section for name in compared if (section := _class_section(name, report))],
        charts=[chart for curve in report.curves if (chart := _chart(curve))],
        overlays=_overlay_groups(report.overlays),
        protocols=_protocols(report.results),
        notes=report.notes,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # "replace": a lone surrogate in a class name must not cost the whole report.
    path.write_text(html, encoding="utf-8", errors="replace")


# ----------------------------------------------------------------------------------------------------- scores


def _only_baseline(name: str, baselines: Mapping[str, str]) -> bool:
    return name in baselines.values() and name not in baselines


def _finite(value: Any) -> float | None:
    """Return the number, or None for anything that is not a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.1f}"


def _headline(name: str, report: Report) -> dict[str, str]:
    """Return the cells of one row of the headline table."""
    result = report.results[name]
    baseline_name = report.baselines.get(name, "")
    baseline = report.results.get(baseline_name, {})
    score, base_score = _finite(result.get("mIoU")), _finite(baseline.get("mIoU"))
    factor = score / base_score if score is not None and base_score else None
    images = result.get("images")
    return {
        "name": name,
        "miou": _percent(score),
        "baseline": _percent(base_score),
        "baseline_name": baseline_name,
        "factor": _MISSING if factor is None else f"{factor:.1f} ×" if factor < 100 else f"{factor:,.0f} ×",
        "aacc": _percent(_finite(result.get("aAcc"))),
        "images": _MISSING if images is None else f"{images:,}" if isinstance(images, int) else str(images),
    }


def _class_section(name: str, report: Report) -> dict[str, Any] | None:
    """Return the bars of one result, best class first, and the classes that do not occur; None without classes."""
    scores = {label: _finite(value) for label, value in report.results[name].get("per_class", {}).items()}
    if not scores:
        return None
    baseline_name = report.baselines.get(name, "")
    base = report.results.get(baseline_name, {}).get("per_class", {})
    occurring = sorted(
        ((label, score) for label, score in scores.items() if score is not None), key=lambda item: -item[1]
    )
    return {
        "name": name,
        "baseline_name": baseline_name if base else "",
        "bars": [_bar(label, score, _finite(base.get(label))) for label, score in occurring],
        "absent": [label for label, score in scores.items() if score is None],
        "open": len(occurring) <= _OPEN_CLASSES,
    }


def _bar(label: str, score: float, base: float | None) -> dict[str, str]:
    def width(value: float | None) -> str:
        return f"{min(100.0, max(0.0, value or 0.0)):.1f}"

    return {
        "label": label,
        "score": _percent(score),
        "width": width(score),
        "base": "" if base is None else _percent(base),
        "base_width": width(base),
    }


# --------------------------------------------------------------------------------------------------- protocol


def _protocols(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the protocols as flat rows; results under the very same protocol share one entry."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, result in results.items():
        rows = tuple(_flattened(result.get("protocol") or {}))
        if rows:
            groups.setdefault(rows, []).append(name)
    return [{"names": names, "rows": rows} for rows, names in groups.items()]


def _flattened(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield ("a.b", text) for every leaf of nested mappings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flattened(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, _leaf(value)


def _leaf(value: Any) -> str:
    if value is None:
        return _MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping | list | tuple) for item in value):
            return json.dumps(value, ensure_ascii=False, default=str)
        texts = [_leaf(item) for item in value]
        # Phrases, such as prompt templates, contain commas themselves: one per line.
        return ("\n" if any(" " in text for text in texts) else ", ").join(texts) or _MISSING
    return str(value)


# --------------------------------------------------------------------------------------------------- overlays


def _overlay_groups(overlays: Sequence[Overlay]) -> list[dict[str, Any]]:
    """Return the pictures by benchmark, in the order in which the benchmarks first appear."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in overlays:
        picture = _reduced(item.image)
        groups.setdefault(item.benchmark, []).append(
            {
                "name": item.name,
                "caption": item.caption,
                "source": _data_uri(picture),
                "width": picture.width,
                "height": picture.height,
                "wide": picture.width >= _WIDE_PICTURE * picture.height,
            }
        )
    return [{"benchmark": benchmark, "pictures": pictures} for benchmark, pictures in groups.items()]


def _reduced(image: Image.Image) -> Image.Image:
    """Return the picture in a mode that a browser shows, not wider than the limit."""
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    image = image.convert("RGBA" if transparent else "RGB")
    if image.width <= _MAX_PICTURE_WIDTH:
        return image
    height = max(1, round(image.height * _MAX_PICTURE_WIDTH / image.width))
    return image.resize((_MAX_PICTURE_WIDTH, height), Image.Resampling.LANCZOS)


def _data_uri(image: Image.Image) -> str:
    """Return the picture as a data URI: JPEG, or PNG where there is transparency to keep."""
    buffer = io.BytesIO()
    if image.mode == "RGBA":
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        # Full chroma resolution: otherwise the contours and the legend's small text get coloured fringes.
        image.save(buffer, "JPEG", quality=86, subsampling=0, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


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
        return _finite(float(cell or ""))
    except ValueError:
        return None


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


def _chart(curve: Curve) -> dict[str, Any] | None:
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
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]


def _thinned(line: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbouring points until the line has at most the maximum number."""
    size = -(-len(line) // _MAX_POINTS)
    groups = [line[start : start + size] for start in range(0, len(line), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis that holds all values, never of zero length."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


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
