"""Concept banks and captions: how well a bank covers annotated captions, and a bank proposed from them.

python -m data_prep.bank captions=DIR bank=FILE
python -m data_prep.bank captions=DIR propose=FILE report=FILE.html
"""

import glob
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_prep.bank.mining import Mention, Mined, Rules, mentions_of, mine
from data_prep.bank.report import Comparison, Example, write_bank_report
from simzss.concepts.bank import ConceptBank
from simzss.concepts.concept import Caption
from simzss.concepts.leakage import excluded_words
from simzss.config import CONF_DIR, find_file, parse_program
from simzss.data.shards import Sample, expand_shards, read_indexes, read_shards, unfinished
from simzss.errors import InputError

_EXAMPLES = 3  # captions shown of each concept


@dataclass
class BankConfig:
    """Coverage of a concept bank over the shards in a folder (or a pattern of shards), or a bank proposed from them.

    `exclude` removes the classes of benchmarks, such as [voc20,ade20k]; `surface_forms` matches words as written
    before their lemma; `output` writes the whole report as JSON; `top` is the length of the printed lists.

    `propose` writes a bank: frequent nouns of the captions, merged by number, spelling, WordNet's synonyms and kinds,
    without the words of the file `stop` and what cannot be seen. It holds at most `size` concepts, each in at least
    `min_count` captions, and words in at least `synonym_count`. `fold` names nouns that swallow all their kinds.
    `wordnet` is a WordNet dict folder (default: nltk's), or `none`. At most `max_words` lemmas are counted at once.
    `report` writes a page about it; `bank` is then one of the banks that it is compared with.
    """

    captions: str = "???"
    bank: str = "concepts/banks/everyday.txt"
    exclude: list[str] = field(default_factory=list)
    surface_forms: bool = True
    output: str | None = None
    top: int = 30
    propose: str | None = None
    report: str | None = None
    size: int = Rules.size
    min_count: int = Rules.min_count
    synonym_count: int = Rules.synonym_count
    fold: list[str] = field(default_factory=lambda: list(Rules.fold))
    stop: str = "concepts/stop.txt"
    wordnet: str | None = None
    max_words: int = 1_000_000


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
    if config.propose is not None:
        propose(config)
        return
    if config.report is not None:
        raise InputError("report=FILE is a page about a proposed bank: give propose=FILE, too")
    bank = ConceptBank.from_file(find_file(config.bank), excluded_words(config.exclude), config.surface_forms)
    coverage, skipped = measure(_shards(config), bank)
    if coverage.captions == 0:
        raise InputError(f"captions={config.captions} holds no annotated caption")
    print_report(coverage, config.top)
    if skipped:
        print(f"skipped {skipped} unreadable samples")
    _write_json(coverage, config.output)


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


def _shards(config: BankConfig) -> list[str]:
    """The shards of the settings, after a line about those that are not all there."""
    urls = find_shards(config.captions)
    if (line := unfinished(read_indexes(urls))) is not None:
        print(line)
    return urls


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


# ----------------------------------------------------------------------------------------------------- proposing


def propose(config: BankConfig) -> None:
    """Mine a bank and write it, with its report.

    Raises:
        InputError: bad settings, no captions, WordNet missing, nothing left, a file that cannot be written.
    """
    assert config.propose is not None
    rules = _rules(config)
    stop_file = find_file(config.stop)
    stop = read_stop(stop_file)
    excluded = frozenset(" ".join(word.lower().split()) for word in excluded_words(config.exclude))
    lexicon = _lexicon(config, rules)
    banks = _shipped(config) if config.report is not None else []
    with Captions(_shards(config)) as corpus:
        if not corpus.count:
            raise InputError(f"captions={config.captions} holds no annotated caption")
        mined = mine(Mentions(corpus, config.surface_forms), stop, excluded, lexicon, rules, config.max_words)
        if not mined.concepts:
            raise InputError(
                f"captions={config.captions}: no concept is left (min_count={config.min_count}, exclude="
                f"[{','.join(config.exclude)}])"
            )
        settings = _settings(config, stop_file, lexicon)
        write_bank(Path(config.propose), mined, settings)
        bank = ConceptBank.from_file(Path(config.propose), surface_forms=config.surface_forms)
        coverages = [Coverage(other) for other in (bank, *(other for _, other in banks))]
        examples: list[list[Example]] = [[] for _ in bank.names]
        for photo in corpus:
            for caption in photo:
                for coverage in coverages:
                    coverage.add(caption)
            if config.report is not None:
                _collect(photo, bank, examples)
        print_report(coverages[0], config.top)
        print(f"{config.propose}: {len(bank)} concepts, {sum(len(entry.words) for entry in bank.entries)} words")
        if mined.counts.forgotten:
            print(f"max_words={config.max_words}: {mined.counts.forgotten} mentions of rare nouns were forgotten")
        if corpus.skipped:
            print(f"skipped {corpus.skipped} unreadable samples")
        if config.report is not None:
            names = ["proposed", *(name for name, _ in banks)]
            write_bank_report(
                Path(config.report),
                mined,
                settings,
                [_compared(name, coverage) for name, coverage in zip(names, coverages, strict=True)],
                examples,
                corpus.skipped,
            )
        _write_json(coverages[0], config.output)


def read_stop(path: Path) -> frozenset[str]:
    """Words of a stop list: separated by commas and line ends; `#` starts a comment; a word may stand twice.

    Raises:
        InputError: not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"stop={path} cannot be read: {error}") from error
    words = (" ".join(word.lower().split()) for line in lines for word in line.split("#", 1)[0].split(","))
    return frozenset(word for word in words if word)


class Captions:
    """The captions of shards, photo by photo, to be gone through several times; a context manager.

    The first pass reads the shards. Their annotations are kept in a temporary file, since the shards are mostly images.

    Args:
        urls: shards.

    Attributes:
        count: captions.
        skipped: samples that could not be read.
    """

    def __init__(self, urls: list[str]) -> None:
        self.count = self.skipped = 0
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        for sample in read_shards(urls):
            if isinstance(sample, Sample):
                self.count += len(sample.captions)
                self._file.write(json.dumps([caption.to_json() for caption in sample.captions]) + "\n")
            else:
                self.skipped += 1

    def __enter__(self) -> "Captions":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[list[Caption]]:
        self._file.seek(0)
        for line in self._file:
            yield [Caption.from_json(record) for record in json.loads(line)]


@dataclass(frozen=True)
class Mentions:
    """The mentions of every caption, photo by photo."""

    captions: Iterable[list[Caption]]
    surface_forms: bool

    def __iter__(self) -> Iterator[list[list[Mention]]]:
        return (mentions_of(photo, self.surface_forms) for photo in self.captions)


def write_bank(path: Path, mined: Mined, settings: dict[str, str]) -> None:
    """Write a word list as `simzss.concepts.bank.read_entries` reads it, under a comment on how it was made.

    Raises:
        InputError: the file cannot be written.
    """
    counts = mined.counts
    lines = [
        f"Proposed by data_prep.bank from {counts.captions} captions of {counts.photos} photos "
        f"({counts.mentions} noun concepts).",
        *(f"{key}: {value}" for key, value in settings.items()),
        "One concept a line, the most frequent first: its name, then the other words that mean the same.",
    ]
    text = "".join(f"# {' '.join(line.split())}\n" for line in lines) + "\n"
    text += "".join(", ".join(concept.entry.words) + "\n" for concept in mined.concepts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"propose={path} cannot be written: {error.strerror or error}") from error


def _rules(config: BankConfig) -> Rules:
    for key in ("size", "min_count", "synonym_count", "max_words"):
        if getattr(config, key) < 1:
            raise InputError(f"{key}={getattr(config, key)}: must be 1 or more")
    return Rules(config.size, config.min_count, config.synonym_count, tuple(config.fold))


def _lexicon(config: BankConfig, rules: Rules) -> Any:
    """The WordNet of the settings; None without."""
    if config.wordnet == "none":
        return None
    from data_prep.bank.wordnet import WordNet  # nltk takes a second to import, which a coverage does not need

    wordnet = WordNet(config.wordnet)
    for noun in rules.fold:
        if not wordnet.senses(noun):
            raise InputError(f"fold=[{','.join(rules.fold)}]: WordNet has no noun {noun!r}")
    return wordnet


def _settings(config: BankConfig, stop_file: Path, lexicon: Any) -> dict[str, str]:
    """What made the bank, as words of the file's header."""
    digest = hashlib.sha256(stop_file.read_bytes()).hexdigest()[:16]
    without = lexicon is None
    return {
        "captions": config.captions,
        "limits": f"size={config.size} min_count={config.min_count} synonym_count={config.synonym_count} "
        f"max_words={config.max_words}",
        "surface_forms": str(config.surface_forms).lower(),
        "wordnet": "none" if without else f"version {lexicon.version}",
        "fold": "nothing (it needs WordNet)" if without else f"[{','.join(config.fold)}]",
        "stop": f"{config.stop} (sha256 {digest})",
        "exclude": f"[{','.join(config.exclude)}]",
    }


def _shipped(config: BankConfig) -> list[tuple[str, ConceptBank]]:
    """The banks to compare with: those of the configuration folder, and the one of the settings."""
    named = find_file(config.bank)
    paths = sorted((CONF_DIR / "concepts" / "banks").glob("*.txt"))
    if named.resolve() not in [path.resolve() for path in paths]:
        paths.append(named)
    return [(path.stem, ConceptBank.from_file(path, surface_forms=config.surface_forms)) for path in paths]


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
    report = coverage.report()
    return Comparison(
        name,
        report["concepts"],
        report["captions_with_concept_percent"],
        report["mentions_in_bank_percent"],
        len(report["never_matched"]),
    )


def _write_json(coverage: Coverage, output: str | None) -> None:
    if output is None:
        return
    report = json.dumps(coverage.report(), indent=1, ensure_ascii=False) + "\n"
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(report, encoding="utf-8")
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error.strerror or error}") from error
