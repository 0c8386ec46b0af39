"""Figures that other systems' authors published, beside those of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, StrictBool

from simzss.errors import ConfigError, DataError
from simzss.reports.tables import DASH, Results, Table, finite, kind, measured, percent
from simzss.settings.base import Settings

_FILE = Path(__file__).with_name("published.yaml")


class Published(Settings):
    """One system in one setting."""

    system: str
    """its name"""
    setting: str
    """data that it was trained on"""
    verified: StrictBool
    """the figures have been looked up in the source"""
    source: str
    """paper and table, one line"""
    miou: dict[str, Annotated[float, Field(ge=0, le=100)]]
    """benchmark to mIoU in per cent"""

    @property
    def word(self) -> str:
        """Return `verified` or `unverified`."""
        return "verified" if self.verified else "unverified"


def load_published(path: Path = _FILE) -> tuple[Published, ...]:
    """Read a file of published figures, by default the one that comes with the package.

    Raises:
        DataError: unreadable, or an entry with a wrong or missing key or value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of systems")
    found = []
    for number, entry in enumerate(content, start=1):
        try:
            found.append(Published.of(entry))
        except ConfigError as error:
            raise DataError(f"{path}, entry {number}: {error}") from error
    return tuple(found)


def published_table(results: Results, published: Sequence[Published]) -> Table | None:
    """Lay out this run beside the published systems, one row per benchmark that both have; None without such a row.

    The number of measured images stands in every row, with the words "not comparable" where it is less than the
    official set's.
    """
    shown = _shared(results, published)
    if not shown:
        return None
    systems = _systems(shown, published)
    engineered = any(result.get("engineered") for result in shown.values())
    columns = ["Benchmark", "This run,\nplain names", "This run,\nengineered names"]
    if not engineered:
        columns = ["Benchmark", "This run"]
    columns += ["Images\nmeasured", *(f"{entry.system}\n{entry.setting}\n{entry.word}" for entry in systems)]
    rows = []
    for name, result in shown.items():
        cells = [name, percent(finite(result["mIoU"]))]
        if engineered:
            cells.append(percent(finite((result.get("engineered") or {}).get("mIoU"))))
        cells.append(measured(result) + (",\nnot comparable" if _is_partial(result) else ""))
        cells += [percent(entry.miou[name]) if name in entry.miou else DASH for entry in systems]
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows), emphasis=(1, 2) if engineered else (1,))


def published_notes(results: Results, published: Sequence[Published]) -> list[str]:
    """Return sentences on rows of the table that may not be compared."""
    notes = []
    for name, result in _shared(results, published).items():
        if _is_partial(result):
            notes.append(
                f"{name}: this run measured {measured(result)} images of the official set, so its figures are not "
                "comparable with the published ones."
            )
        elif not isinstance(result.get("official_images"), int):
            notes.append(
                f"{name}: it is not recorded how many images the official set has; the figures are comparable only "
                "if this run measured all of them."
            )
    return notes


def published_sources(results: Results, published: Sequence[Published]) -> list[str]:
    """Return one line on each system of the table: the source of its figures, verified or not."""
    systems = _systems(_shared(results, published), published)
    return [f"{entry.system}, {entry.setting} ({entry.word}): {entry.source}" for entry in systems]


def _shared(results: Results, published: Sequence[Published]) -> dict[str, Mapping[str, Any]]:
    """Return segmentation results with a score, of benchmarks for which there is a published figure."""
    known = {benchmark for entry in published for benchmark in entry.miou}
    return {
        name: result
        for name, result in results.items()
        if name in known and kind(result) == "segmentation" and finite(result.get("mIoU")) is not None
    }


def _systems(shown: Mapping[str, Any], published: Sequence[Published]) -> list[Published]:
    return [entry for entry in published if any(name in entry.miou for name in shown)]


def _is_partial(result: Mapping[str, Any]) -> bool:
    images, official = result.get("images"), result.get("official_images")
    return isinstance(images, int) and isinstance(official, int) and images < official
