"""Find the strings of a corpus that are one word."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .counts import Counts, Mention
from .rules import Rules
from .visual_senses import Lexicon, VisualSenses

_GAP = re.compile(r"[ '’-]")
_NEARLY_ALWAYS = 0.9  # share of a word's captions that write its plural, from which the plural names it


@dataclass(frozen=True)
class Words:
    """The words of a corpus.

    Attributes:
        counts: word to the captions that mention it.
        strings: text or lemma to the word that it stands for.
        merged: word to the more frequent word of which it is the plural.
        plurals: words that are nearly always written in the plural, to that plural.
        often_plural: share of a word's captions that write it otherwise than its lemma.
        known_as: words that the lexicon knows by another form, to that form.
    """

    counts: dict[str, int]
    strings: dict[str, str]
    merged: dict[str, str]
    plurals: dict[str, str]
    often_plural: dict[str, float]
    known_as: dict[str, str]

    def of(self, mention: Mention) -> str | None:
        """Return the word of a mention; its text is tried before its lemma, as in `ConceptBank.lookup`."""
        text, lemma = mention
        return self.strings.get(text) or self.strings.get(lemma)

    def of_caption(self, mentions: Iterable[Mention]) -> set[str]:
        """Return the words of a caption."""
        return {word for mention in mentions if (word := self.of(mention)) is not None}

    def listed(self, word: str) -> str:
        """Return the word as the lexicon knows it: "clothe" as "clothes", "surf board" as "surfboard"."""
        modifier, head = parts(word)
        return self.known_as.get(word) or f"{modifier} {self.known_as.get(head, head)}".strip()

    def in_bank(self, word: str) -> list[str]:
        """Return the strings of a word in a bank: what lives in the plural by that, then by its lemma."""
        return [self.plurals[word], word] if word in self.plurals else [word]


def word_table(counts: Counts, visual: VisualSenses | None, rules: Rules) -> Words:
    """Group the strings of a corpus that are one word.

    "bikinis", which the lemmatizer missed, is "bikini". "glasses" is not "glass": it is nearly always written so, and
    the dictionary lists it with a meaning of its own.
    """
    found = dict(counts.lemmas)
    plurals: dict[str, str] = {}
    known_as: dict[str, str] = {}
    for lemma, plural in _plurals(counts):
        number, written = counts.forms[lemma][plural], counts.forms[lemma].total()
        if number < max(rules.plural * written, rules.min_count):
            continue
        listed = bool(visual and visual.weights(plural))
        if visual and listed and found[lemma] - number >= rules.min_count and not visual.share_a_meaning(lemma, plural):
            found[plural], found[lemma] = number, found[lemma] - number
        elif number >= _NEARLY_ALWAYS * written:
            plurals[lemma] = plural
            if listed:
                known_as[lemma] = plural
    lexicon = visual.lexicon if visual is not None else None
    if lexicon is not None:
        frequent = [word for word in found if found[word] >= rules.synonym_count and word not in known_as]
        known_as.update((word, spelled) for word in frequent if (spelled := _spelled(word, lexicon)) is not None)
    merged = {
        word: singular
        for word in sorted(found)
        if (singular := _singular(word, found, lexicon, counts.forms.get(word, {}))) is not None
    }
    strings = {word: root_of(word, merged) for word in found}
    often_plural = {lemma: 1 - forms[lemma] / forms.total() for lemma, forms in counts.forms.items()}
    return Words(found, strings, merged, plurals, often_plural, known_as)


def parts(word: str) -> tuple[str, str]:
    """Return the modifier of a compound, empty for a single noun, and its head."""
    modifier, _, head = word.rpartition(" ")
    return modifier, head


def letters(word: str) -> str:
    """Return a word without what stands between its parts."""
    return _GAP.sub("", word)


def root_of(word: str, parents: Mapping[str, str]) -> str:
    """Return what a word joins in the end, by what each word joins; itself if it joins none."""
    while word in parents:
        word = parents[word]
    return word


def _plurals(counts: Counts) -> Iterator[tuple[str, str]]:
    """Yield each lemma that is written otherwise, and its most frequent other form."""
    owner: dict[str, str] = {}  # a string is in the bank once: "leaves" goes to "leaf" or to "leave"
    for lemma, forms in sorted(counts.forms.items()):
        for text in forms:
            if text not in owner or forms[text] > counts.forms[owner[text]][text]:
                owner[text] = lemma
    for lemma, forms in sorted(counts.forms.items()):
        own = [text for text in sorted(forms) if text not in counts.lemmas and owner[text] == lemma]
        others = [text for text in own if _differ_in_number(text, lemma)]
        if others:
            yield lemma, max(others, key=lambda text: forms[text])


def _differ_in_number(text: str, lemma: str) -> bool:
    """Tell whether strings may differ in number alone: "shorts" and "short", not "tan colored dog" and "tan dog"."""
    words, others = text.split(), lemma.split()
    return text != lemma and len(words) == len(others) and words[-1][:2] == others[-1][:2]


def _spelled(word: str, lexicon: Lexicon) -> str | None:
    """Return the lexicon's spelling, apart or in one: "surf board" as "surfboard", "pitbull" as "pit bull"."""
    if lexicon.senses(word):
        return None
    joined = letters(word)
    apart = (joined[:at] + gap + joined[at:] for at in range(1, len(joined) - 1) for gap in " -")
    return next((other for other in (joined, *apart) if other != word and lexicon.senses(other)), None)


def _singular(word: str, found: Mapping[str, int], lexicon: Lexicon | None, forms: Iterable[str]) -> str | None:
    """Return the most frequent word of which `word` is the plural, unless `word` is the more frequent one."""
    modifier, head = parts(word)
    candidates = [f"{modifier} {single}".strip() for single in _singulars(head, lexicon)]
    if modifier:
        candidates += [
            f"{single} {end}" for single in _singulars(modifier, lexicon) for end in (head, *_singulars(head, lexicon))
        ]
    elif lexicon is not None and word not in forms and not lexicon.senses(word):
        # Never written so, such as "vas" for "vases": the lemmatizer cut off too much.
        candidates += [single for text in forms for single in _singulars(text, lexicon)]
    better = [other for other in candidates if other != word and found.get(other, 0) >= found[word]]
    return max(better, key=lambda other: (found[other], other)) if better else None


def _singulars(form: str, lexicon: Lexicon | None) -> list[str]:
    """Return the nouns that a noun may be the plural of."""
    if lexicon is not None:
        base = None if lexicon.senses(form) else lexicon.base(form)  # "glass" is a word of its own
        return [base] if base is not None and base != form else []
    if form.endswith("ss"):
        return []
    endings = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""))
    return [form[: -len(old)] + new for old, new in endings if form.endswith(old) and len(form) > len(old) + 2]
