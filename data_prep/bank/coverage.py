"""Measure how a concept bank covers annotated captions."""

import glob
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simzss.concepts.bank import ConceptBank
from simzss.concepts.concept import Caption
from simzss.data.index import read_indexes, require_sizes, unfinished
from simzss.data.shards import Sample, expand_shards, read_shards
from simzss.errors import DataError

from ..outputs import save_file


@dataclass
class Coverage:
    """Counts over captions: concepts in the bank, nouns outside it."""

    bank: ConceptBank
    captions: int = 0
    covered: int = 0
    mentions: int = 0
    matched: Counter[int] = field(default_factory=Counter)
    unmatched: Counter[str] = field(default_factory=Counter)

    def add(self, caption: Caption) -> None:
        """Count one caption."""
        ids = [self.bank.lookup(concept) for concept in caption.concepts]
        self.captions += 1
        self.mentions += len(ids)
        self.covered += any(found is not None for found in ids)
        for concept, found in zip(caption.concepts, ids, strict=True):
            if found is None:
                self.unmatched[concept.lemma] += 1
            else:
                self.matched[found] += 1

    def never_matched(self) -> list[str]:
        """Return the names of the bank that no caption mentions, in the order of the bank."""
        return [name for i, name in enumerate(self.bank.names) if not self.matched[i]]

    def report(self) -> dict[str, Any]:
        """Return everything as plain JSON values; shares in per cent."""
        matched = sum(self.matched.values())
        return {
            "concepts": len(self.bank),
            "captions": self.captions,
            "captions_with_concept_percent": 100 * self.covered / max(self.captions, 1),
            "mentions": self.mentions,
            "mentions_in_bank_percent": 100 * matched / max(self.mentions, 1),
            "counts": {self.bank.names[i]: count for i, count in self.matched.most_common()},
            "never_matched": self.never_matched(),
            "unmatched_nouns": dict(self.unmatched.most_common(1000)),
        }


def find_shards(captions: str) -> list[str]:
    """Find the shards anywhere below a folder, or of a pattern.

    Raises:
        DataError: there are none.
    """
    folder = Path(captions)
    if not folder.is_dir():
        return expand_shards(captions, "captions")
    # The folder is no part of the pattern: its name may have brackets or braces.
    found = sorted(glob.glob("**/*.tar", root_dir=folder, recursive=True))  # noqa: PTH207
    if not found:
        raise DataError(f"captions={captions} holds no .tar")
    return [str(folder / name) for name in found]


def open_shards(captions: str) -> list[str]:
    """Find shards, and print a line about those that are not all there.

    Raises:
        DataError: there are none, or one that is not of the size that its index.json lists.
    """
    urls = find_shards(captions)
    require_sizes(urls)
    if (line := unfinished(read_indexes(urls))) is not None:
        print(line)
    return urls


def measure(urls: list[str], bank: ConceptBank) -> tuple[Coverage, int]:
    """Count all captions of the shards; return the coverage and the number of unreadable samples."""
    coverage = Coverage(bank)
    skipped = 0
    for sample in read_shards(urls):
        if isinstance(sample, Sample):
            for caption in sample.captions:
                coverage.add(caption)
        else:
            skipped += 1
    return coverage, skipped


def print_report(coverage: Coverage, top: int) -> None:
    """Print the report for a person."""
    report = coverage.report()
    print(
        f"{report['captions']} captions, {report['captions_with_concept_percent']:.1f} % with a concept of the bank; "
        f"{report['mentions_in_bank_percent']:.1f} % of {report['mentions']} noun concepts are in the bank"
    )
    _print_counts("concept", report["counts"], top)
    _print_counts("noun outside the bank", report["unmatched_nouns"], top)
    never = report["never_matched"]
    print(f"{len(never)} of {report['concepts']} names never match: {', '.join(never) or 'none'}")


def _print_counts(title: str, counts: dict[str, int], top: int) -> None:
    rows = list(counts.items())[:top]
    width = max(map(len, [title, *(word for word, _ in rows)]))
    for word, count in [(title, "mentions"), *rows]:
        print(f"  {word:<{width}}  {count:>8}")


def write_json(coverage: Coverage, output: Path) -> None:
    """Write the report as JSON.

    Raises:
        DataError: the file cannot be written.
    """
    report = json.dumps(coverage.report(), indent=1, ensure_ascii=False) + "\n"
    save_file(output, report.encode(errors="backslashreplace"), "output")
