"""Coverage of a concept bank over annotated captions: how often each concept occurs, and which names never match.

python -m data_prep.bank captions=DIR bank=FILE
"""

import glob
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from simzss.concepts.bank import ConceptBank
from simzss.concepts.concept import Caption
from simzss.concepts.leakage import excluded_words
from simzss.config import find_file, parse_program
from simzss.data.shards import Sample, expand_shards, read_shards
from simzss.errors import InputError, run_program


@dataclass
class BankConfig:
    """Coverage of a concept bank over the shards in a folder (or a pattern of shards).

    `exclude` removes the classes of benchmarks, such as [voc20,ade20k]; `surface_forms` matches words as written
    before their lemma; `output` writes the whole report as JSON; `top` is the length of the printed lists.
    """

    captions: str = "???"
    bank: str = "concepts/banks/everyday.txt"
    exclude: list[str] = field(default_factory=list)
    surface_forms: bool = True
    output: str | None = None
    top: int = 30


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
        """Names of the bank that no caption mentions, in the order of the bank."""
        return [name for i, name in enumerate(self.bank.names) if not self.matched[i]]

    def report(self) -> dict[str, Any]:
        """Everything as plain JSON values; shares in per cent."""
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


def main() -> None:
    """Read arguments, count, print."""
    config = parse_program(BankConfig)
    bank = ConceptBank.from_file(find_file(config.bank), excluded_words(config.exclude), config.surface_forms)
    coverage, skipped = measure(find_shards(config.captions), bank)
    if coverage.captions == 0:
        raise InputError(f"captions={config.captions} holds no annotated caption")
    print_report(coverage, config.top)
    if skipped:
        print(f"skipped {skipped} unreadable samples")
    if config.output is not None:
        report = json.dumps(coverage.report(), indent=1, ensure_ascii=False) + "\n"
        try:
            Path(config.output).parent.mkdir(parents=True, exist_ok=True)
            Path(config.output).write_text(report, encoding="utf-8")
        except OSError as error:
            raise InputError(f"output={config.output} cannot be written: {error.strerror or error}") from error


def find_shards(captions: str) -> list[str]:
    """The shards anywhere below a folder, or of a pattern.

    Raises:
        InputError: there are none.
    """
    folder = Path(captions)
    if not folder.is_dir():
        return expand_shards(captions, "captions")
    # The folder is no part of the pattern: its name may have brackets or braces.
    found = sorted(glob.glob("**/*.tar", root_dir=folder, recursive=True))  # noqa: PTH207
    if not found:
        raise InputError(f"captions={captions} holds no .tar")
    return [str(folder / name) for name in found]


def measure(urls: list[str], bank: ConceptBank) -> tuple[Coverage, int]:
    """Coverage over all captions of the shards, and how many samples could not be read."""
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
    console = Console(markup=False, emoji=False)  # captions may hold [brackets] and :colons:
    console.print(
        f"{report['captions']} captions, {report['captions_with_concept_percent']:.1f} % with a concept of the bank; "
        f"{report['mentions_in_bank_percent']:.1f} % of {report['mentions']} noun concepts are in the bank"
    )
    table = Table("concept", "mentions", "noun outside the bank", "mentions")
    inside, outside = list(report["counts"].items())[:top], list(report["unmatched_nouns"].items())[:top]
    for row in range(max(len(inside), len(outside))):
        left, right = inside[row : row + 1], outside[row : row + 1]
        cells = [
            str(value) for pair in (left[0] if left else ("", ""), right[0] if right else ("", "")) for value in pair
        ]
        table.add_row(*cells)
    console.print(table)
    never = report["never_matched"]
    console.print(f"{len(never)} of {report['concepts']} names never match: {', '.join(never) or 'none'}")


if __name__ == "__main__":
    run_program(main)
