"""Figures that other systems' authors published, beside those of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from simzss.errors import InputError, nearest
from simzss.reports.tables import DASH, Results, Table, finite, kind, measured, percent

__all__ = ["Published", "load_published", "published_notes", "published_sources", "published_table"]

_FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """One system in one setting.

    Attributes:
        system: its name.
        setting: what it was trained on.
        verified: whether someone has looked the figures up in the source.
        source: where they come from, one line.
        miou: benchmark to mIoU in per cent.
    """

    system: str
    setting: str
    verified: bool
    source: str
    miou: dict[str, float]

    @property
    def word(self) -> str:
        """`verified` or `unverified`."""
        return "verified" if self.verified else "unverified"


def load_published(path: Path = _FILE) -> tuple[Published, ...]:
    """Read a file of published figures, by default the one that comes with the package.

    Raises:
        InputError: unreadable, or an entry with a wrong or missing key or value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a list of systems")
    return tuple(_entry(f"{path}, entry {number}", entry) for number, entry in enumerate(content, start=1))


def _entry(where: str, entry: Any) -> Published:
    known = [field.name for field in fields(Published)]
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected a mapping with the keys {', '.join(known)}")
    for key in entry:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}; {nearest(str(key), known)}")
    for key, wanted in (("system", str), ("setting", str), ("verified", bool), ("source", str), ("miou", dict)):
        if not isinstance(entry.get(key), wanted):
            raise InputError(f"{where}: {key} is {entry.get(key)!r}, expected {wanted.__name__}")
    for benchmark, value in entry["miou"].items():
        score = finite(value)
        if score is None or not 0 <= score <= 100:
            raise InputError(f"{where}: miou.{benchmark} is {value!r}, expected per cent")
    miou = {str(benchmark): float(value) for benchmark, value in entry["miou"].items()}
    return Published(entry["system"], entry["setting"], entry["verified"], entry["source"], miou)


def published_table(results: Results, published: Sequence[Published]) -> Table | None:
    """This run beside the published systems, one row per benchmark that both have; None without such a row.

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
    """Sentences on which rows of the table may not be compared."""
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
    """One line on each system of the table: where its figures come from and whether they are verified."""
    systems = _systems(_shared(results, published), published)
    return [f"{entry.system}, {entry.setting} ({entry.word}): {entry.source}" for entry in systems]


def _shared(results: Results, published: Sequence[Published]) -> dict[str, Mapping[str, Any]]:
    """Segmentation results with a score, of benchmarks for which there is a published figure."""
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
