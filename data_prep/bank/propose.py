"""Propose a concept bank from annotated captions."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simzss.concepts.bank import ConceptBank
from simzss.concepts.concept import Caption
from simzss.concepts.leakage import excluded_words
from simzss.errors import ConfigError, DataError
from simzss.extras import need
from simzss.settings.compose import CONF_DIR, find_file

from ..outputs import save_file
from .corpus import Captions, Mentions, read_stop
from .coverage import Coverage, open_shards, print_report, write_json
from .mining import Mined, mine
from .report import Comparison, Example, write_bank_report
from .settings import BankSettings

if TYPE_CHECKING:
    from .wordnet import WordNet

_EXAMPLES = 3  # captions shown of each concept


def propose(settings: BankSettings) -> None:
    """Mine a bank and write it, with its report.

    Raises:
        InputError: no captions, WordNet missing, nothing left, a file that cannot be written.
    """
    assert settings.propose is not None
    stop_file = find_file(settings.stop, "stop")
    stop = read_stop(stop_file)
    excluded = frozenset(" ".join(word.lower().split()) for word in excluded_words(settings.exclude))
    lexicon = _lexicon(settings)
    banks = _banks(settings) if settings.report is not None else []
    with Captions(open_shards(settings.captions)) as corpus:
        if not corpus.count:
            raise DataError(f"captions={settings.captions} holds no annotated caption")
        mentions = Mentions(corpus, settings.surface_forms)
        mined = mine(mentions, stop, excluded, lexicon, settings.rules, settings.max_words)
        if not mined.concepts:
            raise DataError(
                f"captions={settings.captions}: no concept is left (min_count={settings.min_count}, exclude="
                f"[{','.join(settings.exclude)}])"
            )
        origin = _origin(settings, stop_file, lexicon)
        write_bank(settings.propose, mined, origin)
        bank = ConceptBank.from_file(settings.propose, surface_forms=settings.surface_forms)
        coverages, examples = _cover(corpus, [bank, *(other for _, other in banks)])
    _print(settings, mined, bank, coverages[0], corpus.skipped)
    if settings.report is not None:
        names = ["proposed", *(name for name, _ in banks)]
        compared = [_compared(name, coverage) for name, coverage in zip(names, coverages, strict=True)]
        write_bank_report(settings.report, mined, origin, compared, examples, corpus.skipped)
    if settings.output is not None:
        write_json(coverages[0], settings.output)


def _cover(corpus: Captions, banks: Sequence[ConceptBank]) -> tuple[list[Coverage], list[list[Example]]]:
    """Measure banks in one pass, and collect captions of each concept of the first."""
    coverages = [Coverage(bank) for bank in banks]
    examples: list[list[Example]] = [[] for _ in banks[0].names]
    for photo in corpus:
        for caption in photo:
            for coverage in coverages:
                coverage.add(caption)
        _collect(photo, banks[0], examples)
    return coverages, examples


def _print(settings: BankSettings, mined: Mined, bank: ConceptBank, coverage: Coverage, skipped: int) -> None:
    print_report(coverage, settings.top)
    print(f"{settings.propose}: {len(bank)} concepts, {sum(len(entry.words) for entry in bank.entries)} words")
    if mined.counts.forgotten:
        print(f"max_words={settings.max_words}: {mined.counts.forgotten} mentions of rare nouns were forgotten")
    if skipped:
        print(f"skipped {skipped} unreadable samples")


def write_bank(path: Path, mined: Mined, origin: dict[str, str]) -> None:
    """Write a word list as `simzss.concepts.bank.read_entries` reads it, under a comment on how it was made.

    Args:
        path: word list to write.
        mined: the bank.
        origin: what made it, label to value.

    Raises:
        DataError: the file cannot be written.
    """
    counts = mined.counts
    lines = [
        f"Proposed by data_prep.bank from {counts.captions} captions of {counts.photos} photos "
        f"({counts.mentions} noun concepts).",
        *(f"{key}: {value}" for key, value in origin.items()),
        "One concept a line, the most frequent first: its name, then the other words that mean the same.",
    ]
    text = "".join(f"# {' '.join(line.split())}\n" for line in lines) + "\n"
    text += "".join(", ".join(concept.entry.words) + "\n" for concept in mined.concepts)
    save_file(path, text.encode(), "propose")


def _lexicon(settings: BankSettings) -> "WordNet | None":
    """Open the WordNet of the settings; None without."""
    if settings.wordnet == "none":
        return None
    need("nltk", "prep")
    from .wordnet import WordNet  # its classes extend nltk's

    wordnet = WordNet(settings.wordnet)
    for noun in settings.fold:
        if not wordnet.senses(noun):
            raise ConfigError(f"fold=[{','.join(settings.fold)}]: WordNet has no noun {noun!r}")
    return wordnet


def _origin(settings: BankSettings, stop_file: Path, lexicon: "WordNet | None") -> dict[str, str]:
    """Return what made the bank, label to value."""
    digest = hashlib.sha256(stop_file.read_bytes()).hexdigest()[:16]
    return {
        "captions": settings.captions,
        "limits": f"size={settings.size} min_count={settings.min_count} synonym_count={settings.synonym_count} "
        f"max_words={settings.max_words}",
        "surface_forms": str(settings.surface_forms).lower(),
        "wordnet": "none" if lexicon is None else f"version {lexicon.version}",
        "fold": "nothing (it needs WordNet)" if lexicon is None else f"[{','.join(settings.fold)}]",
        "stop": f"{settings.stop} (sha256 {digest})",
        "exclude": f"[{','.join(settings.exclude)}]",
    }


def _banks(settings: BankSettings) -> list[tuple[str, ConceptBank]]:
    """Read the banks to compare with: those of the presets, and the one of the settings."""
    named = find_file(settings.bank, "bank")
    paths = sorted((CONF_DIR / "concepts" / "banks").glob("*.txt"))
    if named.resolve() not in [path.resolve() for path in paths]:
        paths.append(named)
    return [(path.stem, ConceptBank.from_file(path, surface_forms=settings.surface_forms)) for path in paths]


def _collect(photo: list[Caption], bank: ConceptBank, examples: list[list[Example]]) -> None:
    """Keep the first captions of each concept, one a photo and way to write it."""
    shown: set[int] = set()
    for caption in photo:
        for concept in caption.concepts:
            found = bank.lookup(concept)
            if found is None or found in shown or len(examples[found]) >= _EXAMPLES:
                continue
            text = caption.text
            example = Example(text[: concept.start], text[concept.start : concept.end], text[concept.end :])
            if example.mention.lower() not in {other.mention.lower() for other in examples[found]}:
                examples[found].append(example)
                shown.add(found)


def _compared(name: str, coverage: Coverage) -> Comparison:
    """Return the numbers of a bank for the comparison."""
    report = coverage.report()
    return Comparison(
        name,
        report["concepts"],
        report["captions_with_concept_percent"],
        report["mentions_in_bank_percent"],
        len(report["never_matched"]),
    )
