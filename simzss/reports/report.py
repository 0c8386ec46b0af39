"""One self-contained HTML page about a run: scores, comparisons, bars, confusions, curves, pictures, protocol."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from simzss.reports.charts import Curve, chart
from simzss.reports.page import write_page
from simzss.reports.published import Published, published_notes, published_sources, published_table
from simzss.reports.tables import (
    Table,
    classification_table,
    compared,
    finite,
    kind,
    masks_table,
    percent,
    protocols,
    results_table,
    retrieval_table,
)

_TEMPLATE = "report.html.j2"
_MAX_PICTURE_WIDTH = 1600  # px: enough for three photos side by side, keeps a page with many overlays mailable
_WIDE_PICTURE = 1.9  # width / height from which an overlay gets a whole row
_OPEN_CLASSES = 40  # longer lists of classes start folded


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
    """Content of the page and of the Markdown file.

    Attributes:
        title: heading of the page.
        summary: key facts (label, value) in reading order.
        results: as in results.json, result name to an entry of `simzss.evaluation.results`, or to {"missing": why it
            was not measured}.
        baselines: result name to the name of the result that it is compared with.
        curves: charts of the training.
        overlays: pictures, shown grouped by benchmark.
        notes: remarks, one paragraph each.
        published: figures of other systems to compare with; those that share no benchmark are not shown.
        confusions: heading, such as the result name, to sentences on its largest confusions.
        worst: pictures that came out worst, shown grouped by benchmark.
        best: pictures that came out best, shown grouped by benchmark.
    """

    title: str
    summary: list[tuple[str, str]] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    baselines: dict[str, str] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    overlays: list[Overlay] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    published: Sequence[Published] = ()
    confusions: dict[str, list[str]] = field(default_factory=dict)
    worst: list[Overlay] = field(default_factory=list)
    best: list[Overlay] = field(default_factory=list)

    @property
    def shown(self) -> dict[str, Mapping[str, Any]]:
        """Return the results that stand for themselves."""
        return compared(self.results, self.baselines)

    @property
    def scores(self) -> Table | None:
        """Return the table of segmentation scores."""
        return results_table(self.results, self.baselines)

    @property
    def against(self) -> list[tuple[str, str]]:
        """Return the results that have a baseline, with its name."""
        return [(name, self.baselines[name]) for name in self.shown if name in self.baselines]

    @property
    def tasks(self) -> list[tuple[str, Table]]:
        """Return the tables of other tasks with their headings."""
        tables = {
            "Classes trained with masks": masks_table(self.shown),
            "Retrieval": retrieval_table(self.shown),
            "Classification": classification_table(self.shown),
        }
        return [(heading, table) for heading, table in tables.items() if table]


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
    pictures = (
        ("worst", "Worst pictures", report.worst),
        ("best", "Best pictures", report.best),
        ("pictures", "Pictures", report.overlays),
    )
    write_page(
        path,
        _TEMPLATE,
        title=report.title,
        summary=report.summary,
        scores=report.scores,
        against=report.against,
        tasks=report.tasks,
        published=published_table(report.shown, report.published),
        published_notes=published_notes(report.shown, report.published),
        published_sources=published_sources(report.shown, report.published),
        classes=[section for name in report.shown if (section := _class_section(name, report))],
        confusions={name: sentences for name, sentences in report.confusions.items() if sentences},
        charts=[drawn for curve in report.curves if (drawn := chart(curve))],
        galleries=[(anchor, heading, _overlay_groups(overlays)) for anchor, heading, overlays in pictures if overlays],
        protocols=protocols(report.results),
        notes=report.notes,
    )


# ------------------------------------------------------------------------------------------------------- bars


def _class_section(name: str, report: Report) -> dict[str, Any] | None:
    """Return the bars of one result, best class first, and the classes that do not occur; None without classes."""
    result = report.results[name]
    scores = {label: finite(value) for label, value in result.get("per_class", {}).items()}
    if not scores or kind(result) != "segmentation":
        return None
    baseline_name = report.baselines.get(name, "")
    base = report.results.get(baseline_name, {}).get("per_class", {})
    occurring = sorted(
        ((label, score) for label, score in scores.items() if score is not None), key=lambda item: -item[1]
    )
    return {
        "name": name,
        "baseline_name": baseline_name if base else "",
        "bars": [_bar(label, score, finite(base.get(label))) for label, score in occurring],
        "absent": [label for label, score in scores.items() if score is None],
        "open": len(occurring) <= _OPEN_CLASSES,
    }


def _bar(label: str, score: float, base: float | None) -> dict[str, str]:
    def width(value: float | None) -> str:
        return f"{min(100.0, max(0.0, value or 0.0)):.1f}"

    return {
        "label": label,
        "score": percent(score),
        "width": width(score),
        "base": "" if base is None else percent(base),
        "base_width": width(base),
    }


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
        form = "png"
    else:
        # Full chroma resolution: otherwise the contours and the legend's small text get coloured fringes.
        image.save(buffer, "JPEG", quality=86, subsampling=0, optimize=True)
        form = "jpeg"
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
