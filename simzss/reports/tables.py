"""Results as tables of text, one description for the HTML page and the Markdown file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "DASH",
    "Protocol",
    "Table",
    "classification_table",
    "compared",
    "finite",
    "kind",
    "masks_table",
    "measured",
    "percent",
    "protocols",
    "results_table",
    "retrieval_table",
]

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
    """Segmentation scores, one row per result, those that could not be measured with their reason.

    Columns for engineered class names, baselines and the size of the official set appear where any result has them. A
    result that serves only as a baseline has no row of its own. None without a row.
    """
    shown = {name: result for name, result in compared(results, baselines).items() if kind(result) == "segmentation"}
    if not shown:
        return None
    engineered = any(result.get("engineered") for result in shown.values())
    against = any(name in baselines for name in shown)
    official = any(result.get("official_images") is not None for result in shown.values())
    columns = ["Benchmark", *(("mIoU,\nplain names", "mIoU,\nengineered names") if engineered else ("mIoU",))]
    columns += ["Baseline\nmIoU", "Factor"] if against else []
    columns += ["Pixel\naccuracy", "Images\nmeasured" if official else "Images"]
    rows: list[tuple[str, ...]] = []
    for name, result in shown.items():
        if "missing" in result:
            rows.append(_missing_row(name, result))
            continue
        score = finite(result.get("mIoU"))
        cells = [name, percent(score)]
        if engineered:
            cells.append(percent(finite((result.get("engineered") or {}).get("mIoU"))))
        if against:
            base = finite(results.get(baselines.get(name, ""), {}).get("mIoU"))
            cells += [percent(base), _factor(score, base)]
        rows.append((*cells, percent(finite(result.get("aAcc"))), measured(result)))
    return Table(tuple(columns), tuple(rows), emphasis=(1, 2) if engineered else (1,))


def retrieval_table(results: Results) -> Table | None:
    """Recall at 1, 5 and 10 in both directions; None without such a result."""
    rows: list[tuple[str, ...]] = []
    for name, result in results.items():
        if kind(result) != "retrieval":
            continue
        if "missing" in result:
            rows.append(_missing_row(name, result))
            continue
        recalls = [
            percent(finite((result.get(direction) or {}).get(rank)))
            for direction in ("image_to_text", "text_to_image")
            for rank in _RANKS
        ]
        rows.append((name, *recalls, measured(result), _count(result.get("captions"))))
    if not rows:
        return None
    columns = (f"{direction}\n{rank}" for direction in ("Image to text", "Text to image") for rank in _RANKS)
    return Table(("Data set", *columns, "Images", "Captions"), tuple(rows), emphasis=(1, 4))


def masks_table(results: Results) -> Table | None:
    """Classes that a head was trained on with masks apart from others; None without such a result."""
    rows = [
        (name, *(percent(finite(apart.get(key))) for key in ("seen", "unseen", "harmonic")))
        for name, result in results.items()
        if (apart := result.get("trained_with_masks"))
    ]
    columns = ("Benchmark", "mIoU,\nclasses with masks", "mIoU,\nother classes", "Harmonic\nmean")
    return Table(columns, tuple(rows), emphasis=(3,)) if rows else None


def classification_table(results: Results) -> Table | None:
    """Top-1 and top-5 accuracy; None without such a result."""
    rows: list[tuple[str, ...]] = []
    for name, result in results.items():
        if kind(result) != "classification":
            continue
        if "missing" in result:
            rows.append(_missing_row(name, result))
            continue
        scores = (percent(finite(result.get(key))) for key in ("top1", "top5"))
        rows.append((name, *scores, measured(result)))
    return Table(("Data set", "Top 1", "Top 5", "Images"), tuple(rows), emphasis=(1,)) if rows else None


def compared(results: Results, baselines: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """The results that stand for themselves: all but those that only serve as a baseline."""
    return {name: result for name, result in results.items() if name not in baselines.values() or name in baselines}


def kind(result: Mapping[str, Any]) -> str:
    """What was measured: `segmentation` unless the result says otherwise."""
    return str(result.get("kind", "segmentation"))


# ----------------------------------------------------------------------------------------------------- cells


def finite(value: Any) -> float | None:
    """Return the number, or None for anything that is not a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def percent(value: float | None) -> str:
    """Per cent with one digit, or a dash."""
    return DASH if value is None else f"{value:.1f}"


def measured(result: Mapping[str, Any]) -> str:
    """Number of images, of how many in the official set where that is known, and how many were skipped if any were."""
    official, skipped = result.get("official_images"), result.get("skipped")
    text = _count(result.get("images"))
    if official is not None:
        text += f" of {_count(official)}"
    return f"{text}, {_count(len(skipped))} skipped" if isinstance(skipped, list | tuple) and skipped else text


def _count(value: Any) -> str:
    return DASH if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _missing_row(name: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    return name, f"not measured: {result['missing']}"


def _factor(score: float | None, base: float | None) -> str:
    if score is None or not base:
        return DASH
    return f"{score / base:.1f} ×" if score / base < 100 else f"{score / base:,.0f} ×"


# --------------------------------------------------------------------------------------------------- protocol


def protocols(results: Results) -> list[Protocol]:
    """The protocols as flat rows; results under the very same protocol share one entry."""
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
