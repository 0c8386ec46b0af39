"""WordNet for mining: senses of a noun, hypernyms, base forms. The only nltk import."""

import warnings
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, Literal

import nltk
from nltk.corpus.reader.wordnet import Synset, WordNetCorpusReader, WordNetError

from simzss.errors import DataError

_GET = "`python -m nltk.downloader wordnet` fetches it, wordnet=DIR names a dict folder, wordnet=none does without"
_FILES = (
    *(f"{kind}.{part}" for kind in ("data", "index") for part in ("noun", "verb", "adj", "adv")),
    *(f"{part}.exc" for part in ("noun", "verb", "adj", "adv")),
    "lexnames", "cntlist.rev",
)  # fmt: skip
_CACHE = 200_000  # words or synsets; WordNet has 117,798 nouns


@dataclass(frozen=True, slots=True)
class Sense:
    """One sense of a noun.

    Attributes:
        synset: name of the set of synonyms, such as "dog.n.01"; equal for words that share the meaning.
        lexname: its broad kind, such as "noun.animal".
        count: how often the noun stands for it in the text that WordNet's authors tagged; 0 for most.
    """

    synset: str
    lexname: str
    count: int


class WordNet:
    """The nouns of WordNet, in its `dict` format.

    Args:
        folder: holds data.noun, index.noun and the others; None looks where nltk keeps its corpora.

    Attributes:
        version: such as "3.0".

    Raises:
        DataError: not found, not readable, or damaged.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._root = _find(folder)
        try:
            self._reader = _English(self._root)
            version = self._reader.get_version()
        except OSError as error:
            raise _unreadable(self._root, error) from error
        except (WordNetError, AssertionError, ValueError, KeyError, StopIteration, RuntimeError) as error:
            raise DataError(f"wordnet={self._root} is no WordNet dict folder: {_line(error)}") from error
        self.version = version or "of unknown version"
        self.senses = lru_cache(_CACHE)(self._senses)
        self.kinds = lru_cache(_CACHE)(self._kinds)
        self.members = lru_cache(_CACHE)(self._members)

    def other_part_of_speech(self, word: str) -> bool:
        """Tell whether the word, or what it is a form of, is a verb, an adjective or an adverb."""
        written = word.replace(" ", "_")
        return any(self._reader.morphy(written, part) for part in ("v", "a", "r"))

    def base(self, form: str, part: Literal["n", "v"] = "n") -> str | None:
        """Return the singular of a noun or the infinitive of a verb by WordNet's rules; None if there is none."""
        found = self._reader.morphy(form.replace(" ", "_"), part)
        return None if found is None else found.replace("_", " ")

    def _senses(self, word: str) -> tuple[Sense, ...]:
        """Return the senses of a common noun as it is written, in WordNet's order.

        Instances (Paris) are left out, and so are names ("Man", the island) unless the noun has no other meaning
        ("Frisbee").
        """
        written = word.replace(" ", "_")
        common: list[Sense] = []
        names: list[Sense] = []
        for synset in self._synsets(written):
            lemma = next((lemma for lemma in synset.lemmas() if lemma.name().lower() == written), None)
            if lemma is not None and not synset.instance_hypernyms():  # None: nltk gives those of base forms, too
                sense = Sense(synset.name(), synset.lexname(), lemma.count())
                (common if lemma.name() == written else names).append(sense)
        return tuple(dict.fromkeys(common or names))

    def _kinds(self, synset: str) -> dict[str, int]:
        """Return the hypernyms of a synset with the number of steps up, itself (0) included."""
        steps, rank = {synset: 0}, [self._reader.synset(synset)]
        for step in count(1):
            rank = [kind for below in rank for kind in below.hypernyms() if kind.name() not in steps]
            if not rank:
                break
            steps.update((kind.name(), step) for kind in rank)
        return steps

    def _members(self, synset: str) -> tuple[str, ...]:
        """Return the synsets that a group consists of, such as person.n.01 for people.n.01."""
        return tuple(sorted(part.name() for part in self._reader.synset(synset).member_meronyms()))

    def _synsets(self, written: str) -> list[Synset]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said below, once and as an error
            try:
                found = self._reader.synsets(written, "n")
            except OSError as error:  # data.noun is opened when it is first needed
                raise _unreadable(self._root, error) from error
        if any(synset is None for synset in found):
            raise DataError(
                f"wordnet={self._root}: index.noun and data.noun do not fit together at {written!r} "
                "(offsets count bytes: line ends must be LF)"
            )
        return found


class _English(WordNetCorpusReader):
    """nltk's reader without the tables of other languages, for which it would want a second WordNet."""

    def __init__(self, root: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that those tables are missing
            super().__init__(root, None)

    def map_wn(self, version: str = "wordnet") -> None:
        """Make no map between versions."""


def _find(folder: str | Path | None) -> Any:
    """Return what nltk reads from: a folder, or its own pointer to a folder or into a zip."""
    if folder is None:
        for name in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
            try:
                return nltk.data.find(name)
            except (LookupError, OSError):
                continue
        raise DataError(f"WordNet is not installed: {_GET}")
    path = Path(folder)
    missing = [name for name in _FILES if not (path / name).is_file()]
    if missing:
        raise DataError(f"wordnet={folder} has no {missing[0]}: {_GET}")
    root = str(path.resolve())
    if root not in nltk.data.path:  # nltk reads below the folders that it has been told of, and no others
        nltk.data.path.append(root)
    return root


def _unreadable(root: Any, error: OSError) -> DataError:
    # nltk reads no file that another account could have written; its sentence says which and why.
    return DataError(f"wordnet={root} cannot be read: {_line(error)}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
