"""Write a self-contained HTML page about a proposed concept bank: coverage, concepts, merges, dropped words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from simzss.reports.charts import Curve, chart

from ..outputs import save_file
from .mining import Merge, Mined

_TEMPLATE = "report.html.j2"
_LISTED = 400  # rows of a long list; the rest is counted

_MERGED = {
    "number": "singular and plural, where the lemmatizer left both",
    "spelling": "the same letters, apart or in one",
    "synonym": "WordNet gives both the same meaning",
    "fold": "a kind of a folded noun, or a group of such",
    "kind": "a kind of the other by WordNet, and rare, or the other captions of its photos use the other word",
    "compound": "its last word says what it is",
}
_DROPPED = {
    "stop": "in the stop list, or its last word is",
    "invisible": "WordNet gives it no meaning that can be seen",
    "no noun": "no noun of WordNet, but a verb, an adjective or an adverb",
    "verb": "a noun and a verb that the parser took for a plural",
    "inflected": "a rare compound that begins with a verb or a plural, which the parser took for a part of the noun",
    "no word": "other characters than letters",
    "excluded": "its concept has a class name of an excluded benchmark",
    "rare": "in too few captions",
    "size": "frequent enough, but the bank is full",
}


@dataclass(frozen=True)
class Example:
    """A caption cut at one mention."""

    before: str
    mention: str
    after: str


@dataclass(frozen=True)
class Comparison:
    """Coverage of one bank; shares in per cent."""

    name: str
    concepts: int
    captions: float
    mentions: float
    never: int


def write_bank_report(
    path: Path,
    mined: Mined,
    settings: dict[str, str],
    comparisons: Sequence[Comparison],
    examples: Sequence[Sequence[Example]],
    skipped: int = 0,
) -> None:
    """Write the page. All text is escaped; nothing is loaded from elsewhere.

    Args:
        path: HTML file to write; missing parent directories are created, an existing file is replaced.
        mined: the bank and how it came about.
        settings: what made it, label to value.
        comparisons: coverage of this bank and of others.
        examples: captions of each concept, in the order of the bank.
        skipped: samples that could not be read.

    Raises:
        DataError: the file cannot be written.
    """
    counts = mined.counts
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_source)
    )
    content = environment.get_template(_TEMPLATE).render(
        title="Proposed concept bank",
        facts=[
            ("concepts", f"{len(mined.concepts):,}"),
            ("words", f"{sum(len(concept.entry.words) for concept in mined.concepts):,}"),
            ("photos", f"{counts.photos:,}"),
            ("captions", f"{counts.captions:,}"),
            ("noun concepts in them", f"{counts.mentions:,}"),
            ("different nouns", f"{len(mined.words.counts):,}"),
            ("unreadable samples", f"{skipped:,}"),
            ("mentions of forgotten nouns", f"{counts.forgotten:,}"),
            *settings.items(),
        ],
        chart=chart(coverage_curve(mined)),
        comparison=_comparison(comparisons),
        concepts=[
            (rank, concept, found)
            for rank, (concept, found) in enumerate(zip(mined.concepts, examples, strict=True), start=1)
        ],
        merged=[_merged(reason, mined) for reason in _MERGED],
        dropped=[_dropped(reason, mined) for reason in _DROPPED],
    )
    # "replace": a lone surrogate in a caption must not cost the whole report.
    save_file(path, content.encode(errors="replace"), "report")


def coverage_curve(mined: Mined) -> Curve:
    """Return the coverage of captions and of noun concepts by the first 1, 2, … concepts, in per cent."""
    sizes = [float(size) for size in range(1, len(mined.concepts) + 1)]
    shares = {
        "captions with a concept": (
            accumulate(mined.first[i] for i in range(len(mined.concepts))), mined.counts.captions
        ),
        "noun concepts in the bank": (
            accumulate(concept.mentions for concept in mined.concepts), mined.counts.mentions
        ),
    }  # fmt: skip
    return Curve(
        "Coverage by size of the bank (%)",
        "concepts",
        {name: (sizes, [100 * value / max(total, 1) for value in values]) for name, (values, total) in shares.items()},
    )


def _comparison(banks: Sequence[Comparison]) -> dict[str, Any]:
    """Return the table of banks."""
    columns = ["bank", "concepts", "captions with a concept, %", "noun concepts in the bank, %", "never match"]
    rows = [
        [bank.name, f"{bank.concepts:,}", f"{bank.captions:.1f}", f"{bank.mentions:.1f}", f"{bank.never:,}"]
        for bank in banks
    ]
    return {"columns": columns, "rows": rows, "emphasis": []}


def _merged(reason: str, mined: Mined) -> dict[str, Any]:
    """Return the merges of one reason into concepts of the bank, the most frequent words first."""
    counts = mined.words.counts
    found = [merge for merge in mined.merges if merge.reason == reason and merge.word not in mined.dropped]
    found.sort(key=lambda merge: (-counts[merge.word], merge.word))
    return {
        "reason": reason,
        "meaning": _MERGED[reason],
        "words": len(found),
        "captions": sum(counts[merge.word] for merge in found),
        "rows": [_row(merge, counts) for merge in found[:_LISTED]],
        "more": max(len(found) - _LISTED, 0),
    }


def _row(merge: Merge, counts: dict[str, int]) -> tuple[str, str, str, str, str]:
    share = "" if merge.share is None else f"{100 * merge.share:.0f} %"
    return merge.word, f"{counts[merge.word]:,}", merge.into, f"{counts[merge.into]:,}", share


def _dropped(reason: str, mined: Mined) -> dict[str, Any]:
    """Return the words that were dropped for one reason, the most frequent first."""
    counts = Counter({word: mined.words.counts[word] for word, why in mined.dropped.items() if why == reason})
    found = sorted(counts, key=lambda word: (-counts[word], word))
    return {
        "reason": reason,
        "meaning": _DROPPED[reason],
        "words": len(found),
        "captions": counts.total(),
        "listed": [(word, f"{counts[word]:,}") for word in found[:_LISTED]],
        "more": max(len(found) - _LISTED, 0),
    }


def _source(name: str) -> str:
    """Read a template: this program's, or one of the pages about runs."""
    package = __package__ if name == _TEMPLATE else "simzss.reports"
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
