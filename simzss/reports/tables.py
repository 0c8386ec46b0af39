"""Results as tables of text, one description for the HTML page and the Markdown file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DASH = "–"
_RANKS = ("R@1", "R@5", "R@10")

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Table:
    """Cells of text.

    Attributes:
        columns: headings; a newline, here and in cells, is a good place to break the text.
        rows: first the row's name. In a row with fewer cells than columns the last cell is a sentence over the rest.
        emphasis: indices of the columns that matter most.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    emphasis: tuple[int, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """Settings that some results share.

    Attributes:
        names: of the results.
        rows: (dotted key, value); a value of several lines is a list of phrases.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]


# ---------------------------------------------------------------------------------------------------- tables


def results_table(results: Results, baselines: Mapping[str, str]) -> Table | None:
    """Lay out segmentation scores, one row per result; None without a row.

    Columns for engineered class names, baselines and the size of the official set appear where any result has them. A
    result that serves only as a baseline has no row of its own.
    """
    found = compared(results, baselines)
    shown = [result for result in found.values() if kind(result) == "segmentation"]
    engineered = any(result.get("engineered") for result in shown)
    against = any(name in baselines for name, result in found.items() if kind(result) == "segmentation")
    official = any(result.get("official_images") is not None for result in shown)
    columns = ["Benchmark", *(("mIoU,\nplain names", "mIoU,\nengineered names") if engineered else ("mIoU",))]
    columns += ["Baseline\nmIoU", "Factor"] if against else []
    columns += ["Pixel\naccuracy", "Images\nmeasured" if official else "Images"]

    def cells(name: str, result: Mapping[str, Any]) -> list[str]:
        score = finite(result.get("mIoU"))
        row = [percent(score)]
        if engineered:
            row.append(percent(finite((result.get("engineered") or {}).get("mIoU"))))
        if against:
            base = finite(results.get(baselines.get(name, ""), {}).get("mIoU"))
            row += [percent(base), _factor(score, base)]
        return [*row, percent(finite(result.get("aAcc"))), measured(result)]

    return _table(found, "segmentation", columns, cells, (1, 2) if engineered else (1,))


def retrieval_table(results: Results) -> Table | None:
    """Lay out recall at 1, 5 and 10 in both directions; None without such a result."""

    def cells(name: str, result: Mapping[str, Any]) -> list[str]:
        recalls = [
            percent(finite((result.get(direction) or {}).get(rank)))
            for direction in ("image_to_text", "text_to_image")
            for rank in _RANKS
        ]
        return [*recalls, measured(result), _count(result.get("captions"))]

    columns = [f"{direction}\n{rank}" for direction in ("Image to text", "Text to image") for rank in _RANKS]
    return _table(results, "retrieval", ["Data set", *columns, "Images", "Captions"], cells, (1, 4))


def classification_table(results: Results) -> Table | None:
    """Lay out top-1 and top-5 accuracy; None without such a result."""

    def cells(name: str, result: Mapping[str, Any]) -> list[str]:
        return [*(percent(finite(result.get(key))) for key in ("top1", "top5")), measured(result)]

    return _table(results, "classification", ["Data set", "Top 1", "Top 5", "Images"], cells, (1,))


def masks_table(results: Results) -> Table | None:
    """Lay out classes that a mask head was trained on apart from others; None without such a result."""
    rows = [
        (name, *(percent(finite(apart.get(key))) for key in ("seen", "unseen", "harmonic")))
        for name, result in results.items()
        if (apart := result.get("trained_with_masks"))
    ]
    columns = ("Benchmark", "mIoU,\nclasses with masks", "mIoU,\nother classes", "Harmonic\nmean")
    return Table(columns, tuple(rows), emphasis=(3,)) if rows else None


def _table(
    results: Results,
    task: str,
    columns: Sequence[str],
    cells: Callable[[str, Mapping[str, Any]], Sequence[str]],
    emphasis: tuple[int, ...],
) -> Table | None:
    """Lay out the results of a task, those that could not be measured with their reason; None without any."""
    rows = [
        (name, f"not measured: {result['missing']}") if "missing" in result else (name, *cells(name, result))
        for name, result in results.items()
        if kind(result) == task
    ]
    return Table(tuple(columns), tuple(rows), emphasis) if rows else None


def compared(results: Results, baselines: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """Return the results that stand for themselves: all but those that only serve as a baseline."""
    return {name: result for name, result in results.items() if name not in baselines.values() or name in baselines}


def kind(result: Mapping[str, Any]) -> str:
    """Return the task of a result: `segmentation` unless it says otherwise."""
    return str(result.get("kind", "segmentation"))


# ----------------------------------------------------------------------------------------------------- cells


def finite(value: Any) -> float | None:
    """Return the number, or None for anything that is not a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def percent(value: float | None) -> str:
    """Format per cent with one digit, or a dash."""
    return DASH if value is None else f"{value:.1f}"


def measured(result: Mapping[str, Any]) -> str:
    """Format the number of images, that of the official set where known, and the number of skipped ones if any."""
    official, skipped = result.get("official_images"), result.get("skipped")
    text = _count(result.get("images"))
    if official is not None:
        text += f" of {_count(official)}"
    return f"{text}, {_count(len(skipped))} skipped" if isinstance(skipped, list | tuple) and skipped else text


def _count(value: Any) -> str:
    return DASH if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _factor(score: float | None, base: float | None) -> str:
    if score is None or not base:
        return DASH
    return f"{score / base:.1f} ×" if score / base < 100 else f"{score / base:,.0f} ×"


# --------------------------------------------------------------------------------------------------- protocol


def protocols(results: Results) -> list[Protocol]:
    """Flatten the protocols to rows; results under the very same protocol share one entry."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, result in results.items():
        engineered = result.get("engineered") or {}
        for label, settings in ((name, result), (f"{name} (engineered names)", engineered)):
            rows = tuple(_flattened(settings.get("protocol") or {}))
            if rows:
                groups.setdefault(rows, []).append(label)
    return [Protocol(tuple(names), rows) for rows, names in groups.items()]


def _flattened(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield ("a.b", text) for every leaf of nested mappings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flattened(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, _leaf(value)


def _leaf(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping | list | tuple) for item in value):
            return json.dumps(value, ensure_ascii=False, default=str)
        texts = [_leaf(item) for item in value]
        # Phrases, such as prompt templates, contain commas themselves: one per line.
        return ("\n" if any(" " in text for text in texts) else ", ").join(texts) or DASH
    return str(value)
