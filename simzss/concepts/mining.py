"""Concept mining: which nouns of a corpus make a bank, and which of them are one concept. Pure functions on counts.

The way of the data: photos -> `Counts` -> `word_table` (which strings are one word) -> `judge` (which words can be
seen) -> `Evidence`, `Family` (what the other captions of a photo say) -> `group` (which words are one concept)
-> `select` (the bank). `mine` goes all the way.

A dictionary proposes and the photos decide. Two captions of one photo that say "poodle" and "dog" show that the two are
one concept for a segmentation; two that say "frisbee" and "dog" show nothing, since neither is a kind of the other.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from simzss.concepts.bank import ConceptBank, Entry
from simzss.concepts.concept import Caption, Concept

Mention = tuple[str, str]
"""Lower-case text and lemma of one concept."""

Photo = Sequence[Sequence[Mention]]
"""The mentions of every caption of one photo."""


class Sense(Protocol):
    """One meaning of a noun: see `simzss.concepts.wordnet.Sense`."""

    @property
    def synset(self) -> str: ...  # noqa: D102
    @property
    def lexname(self) -> str: ...  # noqa: D102
    @property
    def count(self) -> int: ...  # noqa: D102


class Lexicon(Protocol):
    """A dictionary of nouns: see `simzss.concepts.wordnet.WordNet`."""

    def senses(self, word: str) -> Sequence[Sense]: ...  # noqa: D102
    def kinds(self, synset: str) -> Mapping[str, int]: ...  # noqa: D102
    def members(self, synset: str) -> Sequence[str]: ...  # noqa: D102
    def base(self, form: str) -> str | None: ...  # noqa: D102
    def other_part_of_speech(self, word: str) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Rules:
    """Numbers that decide. Shares lie between 0 and 1.

    Attributes:
        size: most concepts in the bank.
        min_count: fewest captions that mention a concept of the bank.
        synonym_count: fewest captions that mention a word of the bank, synonyms included.
        fold: nouns that swallow their kinds, since a mask does not tell them apart.
        senses: how many of a noun's meanings, in the lexicon's order, are considered.
        sure: share of a noun's uses that a meaning must have to count without photos that speak for it.
        certain: share of a noun's uses that must mean a kind of a folded noun to fold it with little asking.
        witnesses: fewest photos with another caption that can speak for or against a merge.
        same: share of a word's photos whose other captions use a more general word, from which the two are one.
        likely: the same for a synonym, where the dictionary is not sure of the meaning.
        denied: share below which the photos refuse a merge that the words propose.
        fold_witnesses: as `witnesses`, for folding.
        plural: share of a noun's captions that write its plural, from which the plural may be a word of its own.
    """

    size: int = 600
    min_count: int = 5
    synonym_count: int = 2
    fold: tuple[str, ...] = ("person",)
    senses: int = 6
    sure: float = 0.5
    certain: float = 0.8
    witnesses: int = 10
    same: float = 0.4
    likely: float = 0.2
    denied: float = 0.08
    fold_witnesses: int = 5
    plural: float = 0.7


# ------------------------------------------------------------------------------------------------------ counting


@dataclass
class Counts:
    """How many captions hold each lemma, and each way to write it.

    Args:
        limit: most lemmas held, which bounds the memory; above it the rarest are forgotten. A lemma that comes back
            starts at 0, so its count is then too low.

    Attributes:
        forgotten: captions that mentioned a lemma which was forgotten later, summed over lemmas.
    """

    limit: int = 1_000_000
    photos: int = 0
    captions: int = 0
    mentions: int = 0
    forgotten: int = 0
    lemmas: Counter[str] = field(default_factory=Counter)
    forms: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, photo: Photo) -> None:
        """Count the captions of one photo."""
        self.photos += 1
        for mentions in photo:
            self.captions += 1
            self.mentions += len(mentions)
            for text, lemma in set(mentions):
                self.forms.setdefault(lemma, Counter())[text] += 1
            self.lemmas.update({lemma for _, lemma in mentions})
        if len(self.lemmas) > self.limit:
            self._forget()

    def _forget(self) -> None:
        """Forget the rarest lemmas until at most half of the limit is left."""
        floor = 0
        while len(self.lemmas) > self.limit // 2:
            floor += 1
            for lemma in [lemma for lemma, count in self.lemmas.items() if count <= floor]:
                self.forgotten += self.lemmas.pop(lemma)
                del self.forms[lemma]


def mentions_of(captions: Iterable[Caption], surface_forms: bool = True) -> list[list[Mention]]:
    """The mentions of each caption of a photo; without surface forms the lemma stands for the text."""
    return [
        [(concept.text.lower() if surface_forms else concept.lemma, concept.lemma) for concept in caption.concepts]
        for caption in captions
    ]


# --------------------------------------------------------------------------------------------------------- words

_GAP = re.compile(r"[ '’-]")


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
        """The word of a mention; its text is tried before its lemma, as in `ConceptBank.lookup`."""
        text, lemma = mention
        return self.strings.get(text) or self.strings.get(lemma)

    def of_caption(self, mentions: Iterable[Mention]) -> set[str]:
        """The words of a caption."""
        return {word for mention in mentions if (word := self.of(mention)) is not None}

    def listed(self, word: str) -> str:
        """How a lexicon knows the word: "clothe" as "clothes", "surf board" as "surfboard"."""
        modifier, head = _parts(word)
        return self.known_as.get(word) or f"{modifier} {self.known_as.get(head, head)}".strip()

    def in_bank(self, word: str) -> list[str]:
        """How a word stands in a bank: what lives in the plural by that, then by its lemma."""
        return [self.plurals[word], word] if word in self.plurals else [word]


def word_table(counts: Counts, lexicon: Lexicon | None, rules: Rules) -> Words:
    """Which strings of a corpus are one word.

    "bikinis", which the lemmatizer missed, is "bikini". "glasses" is not "glass": it is nearly always written so, and
    the dictionary lists it with a meaning of its own.
    """
    found = dict(counts.lemmas)
    strings = {lemma: lemma for lemma in found}
    sight = Sight(lexicon, rules) if lexicon is not None else None
    plurals: dict[str, str] = {}
    known_as: dict[str, str] = {}
    often_plural: dict[str, float] = {}
    owner: dict[str, str] = {}  # a string is in the bank once: "leaves" goes to "leaf" or to "leave"
    for lemma, forms in sorted(counts.forms.items()):
        for text in forms:
            if text not in owner or forms[text] > counts.forms[owner[text]][text]:
                owner[text] = lemma
    for lemma, forms in sorted(counts.forms.items()):
        written = sum(forms.values())
        often_plural[lemma] = 1 - forms[lemma] / written
        others = [text for text in sorted(forms) if text not in counts.lemmas and owner[text] == lemma]
        others = [text for text in others if _differ_in_number(text, lemma)]
        plural = max(others, key=lambda text: forms[text], default="")
        number = forms[plural] if plural else 0
        if not plural or number < max(rules.plural * written, rules.min_count):
            continue
        if lexicon is not None and sight is not None and sight.weights(plural):
            if found[lemma] - number >= rules.min_count and not _share_a_sense(lexicon, lemma, plural, rules):
                strings[plural] = plural
                found[plural], found[lemma] = number, found[lemma] - number
                continue
            if number >= 0.9 * written:
                known_as[lemma] = plural
        if number >= 0.9 * written:
            plurals[lemma] = plural
    if lexicon is not None:
        for word in sorted(found.keys() - known_as.keys()):
            if found[word] >= rules.synonym_count and not lexicon.senses(word):
                spelled = _spelled(word, lexicon)
                if spelled is not None:
                    known_as[word] = spelled
    merged = {
        word: singular
        for word in sorted(found)
        if (singular := _singular(word, found, lexicon, counts.forms.get(word, {}))) is not None
    }
    for word in merged:
        strings[word] = _root(word, merged)
    return Words(found, strings, merged, plurals, often_plural, known_as)


def _parts(word: str) -> tuple[str, str]:
    """The modifier of a compound, empty for a single noun, and its head."""
    modifier, _, head = word.rpartition(" ")
    return modifier, head


def _differ_in_number(text: str, lemma: str) -> bool:
    """Whether two strings may differ in number alone: "shorts" and "short", but not "tan colored dog" and "tan dog"."""
    words, others = text.split(), lemma.split()
    return text != lemma and len(words) == len(others) and words[-1][:2] == others[-1][:2]


def _share_a_sense(lexicon: Lexicon, first: str, second: str, rules: Rules) -> bool:
    a, b = ({sense.synset for sense in lexicon.senses(word)[: rules.senses]} for word in (first, second))
    return bool(a & b)


def _spelled(word: str, lexicon: Lexicon) -> str | None:
    """The word as the lexicon spells it, apart or in one: "surf board" as "surfboard", "pitbull" as "pit bull"."""
    joined = re.sub(_GAP, "", word)
    apart = (joined[:at] + gap + joined[at:] for at in range(1, len(joined) - 1) for gap in " -")
    return next((other for other in (joined, *apart) if other != word and lexicon.senses(other)), None)


def _singular(word: str, found: Mapping[str, int], lexicon: Lexicon | None, forms: Mapping[str, int]) -> str | None:
    """The most frequent word of the corpus of which `word` is the plural, unless `word` is the more frequent one."""
    modifier, head = _parts(word)
    candidates = [f"{modifier} {single}".strip() for single in _singulars(head, lexicon)]
    if modifier:
        candidates += [
            f"{single} {end}" for single in _singulars(modifier, lexicon) for end in (head, *_singulars(head, lexicon))
        ]
    elif lexicon is not None and word not in forms and not lexicon.senses(word):
        # Never written so, such as "vas" for "vases": the lemmatizer cut off too much.
        candidates += [single for text in sorted(forms) for single in _singulars(text, lexicon)]
    better = [other for other in candidates if other != word and found.get(other, 0) >= found[word]]
    return max(better, key=lambda other: (found[other], other)) if better else None


def _singulars(form: str, lexicon: Lexicon | None) -> list[str]:
    """What a noun may be the plural of."""
    if lexicon is not None:
        base = None if lexicon.senses(form) else lexicon.base(form)  # "glass" is a word of its own
        return [base] if base is not None and base != form else []
    if form.endswith("ss"):
        return []
    endings = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""))
    return [form[: -len(old)] + new for old, new in endings if form.endswith(old) and len(form) > len(old) + 2]


def _root(word: str, parents: Mapping[str, str]) -> str:
    while word in parents:
        word = parents[word]
    return word


# ------------------------------------------------------------------------------------------------------- judging

_VISIBLE = {
    "noun.animal", "noun.artifact", "noun.body", "noun.food", "noun.location", "noun.object", "noun.person",
    "noun.plant", "noun.substance",
}  # fmt: skip
# What WordNet files under events, groups, signals and the like though it fills pixels: a noun, its broad kind.
_VISIBLE_KINDS = (
    ("person", "noun.Tops"), ("animal", "noun.Tops"), ("plant", "noun.Tops"), ("food", "noun.Tops"),
    ("people", "noun.group"), ("gathering", "noun.group"), ("team", "noun.group"), ("family", "noun.group"),
    ("animal group", "noun.group"), ("vegetation", "noun.group"),
    ("fire", "noun.event"), ("fire", "noun.process"), ("wave", "noun.event"), ("splash", "noun.event"),
    ("precipitation", "noun.phenomenon"), ("smoke", "noun.phenomenon"), ("cloud", "noun.phenomenon"),
    ("light", "noun.phenomenon"), ("rainbow", "noun.phenomenon"), ("shadow", "noun.state"),
    ("visual signal", "noun.communication"), ("sign", "noun.communication"),
)  # fmt: skip
_WORD = re.compile(r"(?=..)[^\W\d_]+(?:[ '’-][^\W\d_]+)*")
_NO_NOUN = ("less", "ful", "ly", "ed")  # endings of words that no dictionary lists: "shirtless"


class Sight:
    """Which meanings of a noun can be seen, and how likely they are."""

    def __init__(self, lexicon: Lexicon, rules: Rules) -> None:
        self._lexicon = lexicon
        self._limit = rules.senses
        self._weights: dict[str, dict[str, float]] = {}
        self._roots = {
            sense.synset
            for noun, lexname in _VISIBLE_KINDS
            for sense in lexicon.senses(noun)
            if sense.lexname == lexname
        }

    def weights(self, word: str) -> dict[str, float]:
        """Visible meanings of a noun to their weight, in the lexicon's order; empty if none can be seen.

        The weight is the number of tagged uses plus 1 / rank: nouns of daily life often have no tagged use at all.
        """
        if word not in self._weights:
            self._weights[word] = {
                sense.synset: weight
                for sense, weight in self._weighed(word)
                if sense.lexname in _VISIBLE or not self._roots.isdisjoint(self._lexicon.kinds(sense.synset))
            }
        return self._weights[word]

    def meaning(self, word: str) -> str | None:
        """The likeliest visible meaning."""
        weights = self.weights(word)
        return max(weights, key=lambda synset: weights[synset]) if weights else None

    def share(self, word: str, wanted: Callable[[str], bool]) -> float:
        """Share of a noun's uses, visible or not, that mean a wanted synset."""
        weighed = self._weighed(word)
        total = sum(weight for _, weight in weighed)
        return sum(weight for sense, weight in weighed if wanted(sense.synset)) / total if total else 0.0

    def _weighed(self, word: str) -> list[tuple[Sense, float]]:
        senses = self._lexicon.senses(word)[: self._limit]
        return [(sense, sense.count + 1 / rank) for rank, sense in enumerate(senses, start=1)]


@dataclass(frozen=True)
class Judgement:
    """What becomes of each word.

    Attributes:
        kept: words that name something that can be seen.
        meaning: kept word to the synset that it most likely means; no entry for a word that the lexicon lacks.
        dropped: other words, to the reason: "rare", "no word", "stop", "invisible", "no noun" or "verb".
    """

    kept: frozenset[str]
    meaning: dict[str, str]
    dropped: dict[str, str]


def judge(words: Words, stop: frozenset[str], lexicon: Lexicon | None, rules: Rules) -> Judgement:
    """Which words name something that can be seen.

    A compound that the lexicon lacks is judged by its head: "tan dog" is a dog, "tan colour" is nothing to see.
    """
    sight = Sight(lexicon, rules) if lexicon is not None else None
    meaning: dict[str, str] = {}
    kept: set[str] = set()
    dropped: dict[str, str] = {}
    for word in sorted(words.counts.keys() - words.merged.keys()):
        rare = words.counts[word] < rules.synonym_count
        reason = "rare" if rare else _unfit(word, words, stop, lexicon, sight)
        if reason is not None:
            dropped[word] = reason
            continue
        kept.add(word)
        synset = sight.meaning(words.listed(word)) if sight is not None else None
        if synset is not None:
            meaning[word] = synset
    return Judgement(frozenset(kept), meaning, dropped)


def _unfit(word: str, words: Words, stop: frozenset[str], lexicon: Lexicon | None, sight: Sight | None) -> str | None:
    """Why a word is no concept; None if it is one."""
    if _WORD.fullmatch(word) is None:
        return "no word"
    modifier, head = _parts(word)
    if word in stop:
        return "stop"
    if lexicon is None or sight is None:
        return "stop" if head in stop else None
    known = words.listed(word)
    if lexicon.senses(known):
        return None if sight.weights(known) else "invisible"
    if not modifier:
        return "no noun" if lexicon.other_part_of_speech(word) or word.endswith(_NO_NOUN) else None
    if head in stop:
        return "stop"
    known = words.listed(head)
    if not lexicon.senses(known):
        return "no noun" if lexicon.other_part_of_speech(head) else None
    if not sight.weights(known):
        return "invisible"
    # "a dog splashes": the parser takes such verbs for plurals. Alone, the noun is seldom written so.
    often, alone = words.often_plural.get(word, 0), words.often_plural.get(head, 0)
    return "verb" if often >= 0.8 and alone < 0.4 and known == head and lexicon.other_part_of_speech(head) else None


# ------------------------------------------------------------------------------------------------------ evidence


@dataclass
class Evidence:
    """How often the other captions of a photo use another word.

    Args:
        words: the words.
        pairs: word to the other words that are of interest.
    """

    words: Words
    pairs: Mapping[str, frozenset[str]]
    photos: Counter[str] = field(default_factory=Counter)
    together: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, photo: Photo) -> None:
        """Count one photo."""
        if len(photo) < 2:
            return
        captions = [self.words.of_caption(mentions) for mentions in photo]
        times = Counter(word for caption in captions for word in caption)
        seen: set[str] = set()
        joint: set[tuple[str, str]] = set()
        for caption in captions:
            for word in caption & self.pairs.keys():
                seen.add(word)
                joint.update((word, other) for other in self.pairs[word] if times[other] > (other in caption))
        self.photos.update(seen)
        self.together.update(joint)

    def share(self, word: str, other: str, witnesses: int) -> float | None:
        """Share of the photos of `word` whose other captions use `other`; None where too few photos can tell."""
        photos = self.photos[word]
        if photos < max(witnesses, 1) or other not in self.pairs.get(word, ()):
            return None
        return self.together[word, other] / photos


def candidate_pairs(
    words: Words, judgement: Judgement, lexicon: Lexicon | None, rules: Rules
) -> dict[str, frozenset[str]]:
    """Words that may be one concept: a compound and its head, words with a shared meaning, a word and its kinds."""
    by_meaning: dict[str, list[str]] = {}
    for word, synset in judgement.meaning.items():
        by_meaning.setdefault(synset, []).append(word)
    sight = Sight(lexicon, rules) if lexicon is not None else None
    pairs: dict[str, set[str]] = {word: set() for word in judgement.kept}
    for word in judgement.kept:
        others: set[str] = {_parts(word)[1]} & judgement.kept
        if lexicon is not None and sight is not None:
            for synset in sight.weights(words.listed(word)):
                for kind in lexicon.kinds(synset):
                    others.update(by_meaning.get(kind, ()))
        for other in others - {word}:  # which of the two is the more frequent one comes out later
            pairs[word].add(other)
            pairs[other].add(word)
    return {word: frozenset(others) for word, others in pairs.items() if others}


class Family:
    """Words that one noun may swallow, since they are kinds of it or groups of such, and what photos say about them.

    Args:
        noun: such as "person"; its first meaning counts.

    Attributes:
        certain: words that nearly always mean one.
        likely: words that mean one, or a group, more often than not; compounds that the lexicon lacks, by their head;
            for persons also unlisted words that look like an agent ("kayaker").
        doubtful: words that may mean one ("mug").
    """

    def __init__(self, noun: str, words: Words, judgement: Judgement, lexicon: Lexicon, rules: Rules) -> None:
        self.noun = noun
        self._words = words
        self._lexicon = lexicon
        self._rules = rules
        self._known: dict[str, bool] = {}
        self._root = lexicon.senses(noun)[0].synset
        people = noun == "person"
        self._groups = {sense.synset for sense in lexicon.senses("social group")} if people else set()
        self._captions: Counter[str] = Counter()
        self._alone: Counter[str] = Counter()
        self._photos: Counter[str] = Counter()
        self._beside: Counter[str] = Counter()
        self._sight = sight = Sight(lexicon, rules)
        certain, likely, doubtful = {noun}, set(), set()
        for word in judgement.kept - {noun}:
            known, head = words.listed(word), _parts(word)[1]
            share = sight.share(known, self.has)
            if sight.share(known, self._is_one) >= rules.certain:
                certain.add(word)
            elif share >= rules.sure or (not lexicon.senses(known) and self._by_head(head, sight, people)):
                likely.add(word)
            elif share > 0.1:
                doubtful.add(word)
        self.certain, self.likely, self.doubtful = frozenset(certain), frozenset(likely), frozenset(doubtful)

    def _by_head(self, head: str, sight: Sight, people: bool) -> bool:
        known = self._words.listed(head)
        if self._lexicon.senses(known):
            return sight.share(known, self.has) >= self._rules.sure
        return people and _agent(head, self._lexicon)

    def has(self, synset: str) -> bool:
        """Whether a synset is a kind of the noun, or a group of such."""
        return self._is_one(synset) or not self._groups.isdisjoint(self._lexicon.kinds(synset))

    def _is_one(self, synset: str) -> bool:
        """Whether a synset is a kind of the noun, or of a group with listed members that are ("people")."""
        if synset not in self._known:
            kinds = self._lexicon.kinds(synset)
            self._known[synset] = self._root in kinds or any(
                self._root in self._lexicon.kinds(member) for kind in kinds for member in self._lexicon.members(kind)
            )
        return self._known[synset]

    @property
    def asked(self) -> frozenset[str]:
        """All words of which photos are asked, without the noun itself."""
        return (self.certain | self.likely | self.doubtful) - {self.noun}

    def add(self, photo: Photo) -> None:
        """Count one photo: which of its words stand alone, and whether its other captions name the family."""
        captions = [self._words.of_caption(mentions) for mentions in photo]
        naming = [caption & self.certain for caption in captions]
        asked = self.asked
        seen: set[str] = set()
        beside: set[str] = set()
        for place, caption in enumerate(captions):
            for word in caption & asked:
                self._captions[word] += 1
                self._alone[word] += not naming[place] - {word}
                if len(photo) > 1:
                    seen.add(word)
                if any(others - {word} for other, others in enumerate(naming) if other != place):
                    beside.add(word)
        self._photos.update(seen)
        self._beside.update(beside)

    def evidence(self, word: str) -> tuple[float | None, float]:
        """Share of a word's photos whose other captions name the family; share of its captions that do not besides.

        "A runner" is one where others see "a man"; "a boy in a hood" names the boy himself. The first is None where too
        few photos have other captions.
        """
        photos = self._photos[word]
        alone = self._alone[word] / max(self._captions[word], 1)
        return (self._beside[word] / photos if photos >= self._rules.fold_witnesses else None), alone

    def fold(self) -> dict[str, float | None]:
        """The words that the noun swallows, to the share of their photos whose other captions name the family."""
        folded: dict[str, float | None] = {}
        for word in sorted(self.asked, key=lambda word: (word.count(" "), word)):  # heads before their compounds
            modifier, head = _parts(word)
            share, alone = self.evidence(word)
            if word in self.certain:
                weights = self._sight.weights(self._words.listed(word)).values()
                yes = share is None or share >= _CERTAIN_SHARE or max(weights) >= _SETTLED
            elif share is None:
                yes = bool(modifier) and (head == self.noun or head in folded)
            else:
                needed, needed_alone = _LIKELY_SHARES if word in self.likely else _DOUBTFUL_SHARES
                yes = share >= needed and alone >= needed_alone
            if yes:
                folded[word] = share
        return folded


# How often the other captions must name the family, and how rarely the word's own caption does: the surer the
# dictionary, the less the photos have to say. Most photos show a person, whom other captions name anyway.
_CERTAIN_SHARE = 0.3
_LIKELY_SHARES = (0.9, 0.15)
_DOUBTFUL_SHARES = (0.75, 0.6)


def _agent(word: str, lexicon: Lexicon) -> bool:
    """Whether an unlisted word is made of a listed one and "er": "kayaker", "biker", "rollerblader"."""
    if not word.endswith("er"):
        return False
    stems = [word[:-2], word[:-1], *([word[:-3]] if word[-4:-3] == word[-3:-2] else [])]
    return any(len(stem) > 2 and (lexicon.senses(stem) or lexicon.other_part_of_speech(stem)) for stem in stems)


# ------------------------------------------------------------------------------------------------------ grouping


@dataclass(frozen=True)
class Merge:
    """A word that is no concept of its own.

    Attributes:
        word: the word.
        into: the word that it joins.
        reason: "number", "spelling", "synonym", "fold", "kind" or "compound".
        share: of the word's photos whose other captions use the other word; None where too few photos can tell.
    """

    word: str
    into: str
    reason: str
    share: float | None = None


def group(
    words: Words,
    judgement: Judgement,
    evidence: Evidence,
    families: Sequence[Family],
    lexicon: Lexicon | None,
    rules: Rules,
) -> list[Merge]:
    """Which words are one concept, by word; a word without a merge is one of its own."""
    return _Grouping(words, judgement, evidence, lexicon, rules).merge(families)


class _Grouping:
    """The state of `group`: what the words mean, and which of them have been merged so far."""

    def __init__(
        self, words: Words, judgement: Judgement, evidence: Evidence, lexicon: Lexicon | None, rules: Rules
    ) -> None:
        self.words = words
        self.evidence = evidence
        self.lexicon = lexicon
        self.rules = rules
        self.sight = Sight(lexicon, rules) if lexicon is not None else None
        self.alive = set(judgement.kept)
        self.merges = {word: Merge(word, into, "number") for word, into in words.merged.items()}
        self.parents = dict(words.merged)
        self.refused: set[tuple[str, str]] = set()
        self.meaning = dict(judgement.meaning)

    def merge(self, families: Sequence[Family]) -> list[Merge]:
        self.meaning = self._meanings()
        for family in families:
            self._fold(family)
        for same in self._equal(self.alive, lambda word: re.sub(_GAP, "", word)):
            for word in same[1:]:
                if self.meaning.get(word) == self.meaning.get(same[0]):
                    self._join(word, same[0], "spelling")
        for same in self._equal(self.alive & self.meaning.keys(), self.meaning.__getitem__):
            for word in same[1:]:
                self._join_synonym(word, same[0])
        for word in sorted(self.alive, key=lambda word: (self.words.counts[word], word)):  # rare ones first
            self._join_general(word)
        return [self.merges[word] for word in sorted(self.merges)]

    def _join(self, word: str, into: str, reason: str, share: float | None = None) -> None:
        self.merges[word] = Merge(word, into, reason, share)
        self.parents[word] = into
        self.alive.discard(word)

    def _equal(self, words: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
        """Words of equal key, two or more, the most frequent first; in a fixed order."""
        groups: dict[str, list[str]] = {}
        for word in sorted(words, key=lambda word: (-self.words.counts[word], word)):
            groups.setdefault(key(word), []).append(word)
        return [groups[name] for name in sorted(groups) if len(groups[name]) > 1]

    def _sure(self, word: str) -> bool:
        """Whether the dictionary leaves little doubt about what the word means."""
        assert self.sight is not None
        meaning = self.meaning[word]
        return self.sight.share(self.words.listed(word), lambda synset: synset == meaning) >= self.rules.sure

    def _most_general(self, word: str) -> bool:
        """Whether a word is one of the dictionary's beginnings: "food" shall not swallow "sandwich"."""
        assert self.lexicon is not None
        senses = self.lexicon.senses(self.words.listed(word))
        return any(sense.synset == self.meaning[word] and sense.lexname == "noun.Tops" for sense in senses)

    def _meanings(self) -> dict[str, str]:
        """The meaning of each word: the likeliest one, unless tagged text leaves it open and the photos do not.

        The dictionary does not know whether a bike is a bicycle or a motorcycle; the other captions of its photos do.
        """
        meaning = dict(self.meaning)
        if self.sight is None:
            return meaning
        by_meaning: dict[str, list[str]] = {}
        for word, synset in self.meaning.items():
            by_meaning.setdefault(synset, []).append(word)
        for word in self.meaning:
            weights = self.sight.weights(self.words.listed(word))
            if len(weights) < 2 or max(weights.values()) >= _SETTLED:
                continue
            shares = {
                synset: max((self._share(word, rival) or 0.0 for rival in by_meaning.get(synset, ())), default=0.0)
                for synset in weights
            }
            best = max(weights, key=lambda synset: (shares[synset], weights[synset]))
            if shares[best] >= self.rules.denied:
                meaning[word] = best
        return meaning

    def _share(self, word: str, other: str) -> float | None:
        return self.evidence.share(word, other, self.rules.witnesses)

    def _fold(self, family: Family) -> None:
        """Merge the family into its noun; a word that the photos refuse loses that meaning."""
        for word, share in family.fold().items():
            if word in self.alive:
                self._join(word, family.noun, "fold", share)
        assert self.sight is not None
        for word in sorted(family.asked & self.alive):
            self.refused.add((word, family.noun))
            if word in self.meaning and family.has(self.meaning[word]):
                del self.meaning[word]
                weights = self.sight.weights(self.words.listed(word))
                left = [synset for synset in weights if not family.has(synset)]
                if left:
                    self.meaning[word] = max(left, key=lambda synset: weights[synset])

    def _join_synonym(self, word: str, into: str) -> None:
        """Merge two words of one meaning, unless the photos say otherwise or neither they nor the dictionary know."""
        share = self._share(word, into)
        if self._sure(word) and self._sure(into):
            yes = share is None or share >= self.rules.denied
        else:
            yes = share is not None and share >= self.rules.likely
        if yes:
            self._join(word, into, "synonym", share)

    def _join_general(self, word: str) -> None:
        """Merge a word into a more general one: its head, or what it is a kind of."""
        found = self._general(word)
        if found is not None and (word, found[0]) not in self.refused:
            self._join(word, *found)

    def _general(self, word: str) -> tuple[str, str, float | None] | None:
        """The more general word that a word shall join, why, and the share of its photos that speak for it."""
        counts, rules = self.words.counts, self.rules
        rare = counts[word] < rules.min_count
        head = _parts(word)[1]
        kinds = self.lexicon.kinds(self.meaning[word]) if self.lexicon is not None and word in self.meaning else {}
        others = self.evidence.pairs.get(word, frozenset())
        roots = {other: root for other in others if (root := _root(other, self.parents)) != word}
        above = sorted(
            (steps, -counts[other], other)
            for other in roots
            if counts[other] > counts[word]
            and (steps := kinds.get(self.meaning.get(other, ""), 0)) > 0
            and not self._most_general(other)
        )
        backed = [(share, other) for _, _, other in above if (share := self._share(word, other) or 0.0) >= rules.same]
        if backed:
            share, other = max(backed, key=lambda pair: pair[0])
            return roots[other], "compound" if other == head else "kind", share
        if head != word and head in roots:
            of_head = self._share(word, head)
            if kinds or (self.lexicon is None and not rare):  # a name of its own, such as "hot dog", or it may be one
                one = of_head is not None and of_head >= rules.same
            else:
                one = of_head is None or of_head >= rules.denied
            if one:
                return roots[head], "compound", of_head
        near = [other for steps, _, other in above if steps == 1 and self._sure(other)]
        if rare and near and self._sure(word):
            return roots[near[0]], "kind", None
        return None


_SETTLED = 3.0  # weight of a meaning from which tagged text settles what a noun means


# ----------------------------------------------------------------------------------------------------- selecting


@dataclass
class Tally:
    """Captions and mentions of each concept of a bank, and the first concept of each caption.

    Args:
        bank: the bank.

    Attributes:
        first: lowest concept id of a caption, to the number of such captions: with the concepts in the order of the
            bank, the captions that a shorter bank covers.
    """

    bank: ConceptBank
    captions: Counter[int] = field(default_factory=Counter)
    mentions: Counter[int] = field(default_factory=Counter)
    first: Counter[int] = field(default_factory=Counter)

    def add(self, photo: Photo) -> None:
        """Count one photo."""
        for mentions in photo:
            looked_up = [self.bank.lookup(Concept(text, lemma, 0, 0)) for text, lemma in mentions]
            found = [concept for concept in looked_up if concept is not None]
            self.mentions.update(found)
            self.captions.update(set(found))
            if found:
                self.first[min(found)] += 1


@dataclass(frozen=True)
class Chosen:
    """One concept of the bank, how many captions mention it, and how often it is mentioned."""

    entry: Entry
    captions: int
    mentions: int


@dataclass(frozen=True)
class Mined:
    """A proposed bank and how it came about.

    Attributes:
        concepts: the bank, most frequent first.
        words: the words of the corpus.
        merges: words that are no concept of their own, by word.
        dropped: words that are not in the bank, to the reason: those of `Judgement`, "excluded", "size".
        counts: what was counted.
        first: see `Tally`.
    """

    concepts: list[Chosen]
    words: Words
    merges: list[Merge]
    dropped: dict[str, str]
    counts: Counts
    first: Counter[int]


def entries_of(words: Words, kept: Iterable[str], merges: Iterable[Merge], rules: Rules) -> dict[str, Entry]:
    """The root of each group of words to its entry, synonyms by frequency."""
    parents = {merge.word: merge.into for merge in merges}
    groups: dict[str, list[str]] = {}
    for word in sorted({*kept, *parents}, key=lambda word: (-words.counts[word], word)):
        groups.setdefault(_root(word, parents), []).append(word)
    entries = {}
    for root, members in groups.items():
        listed = [root, *(word for word in members if word != root and words.counts[word] >= rules.synonym_count)]
        name, *synonyms = (string for word in listed for string in words.in_bank(word))
        entries[root] = Entry(name, tuple(synonyms))
    return entries


def mine(
    photos: Iterable[Photo],
    stop: frozenset[str],
    excluded: frozenset[str],
    lexicon: Lexicon | None,
    rules: Rules,
    limit: int = 1_000_000,
) -> Mined:
    """Propose a bank.

    Args:
        photos: the corpus; it is gone through four times, in memory that does not grow with it.
        stop: words that are no concepts.
        excluded: words whose concepts are left out whole, as `ConceptBank.from_file` does (leakage control).
        lexicon: None merges by number, spelling and compound alone, and takes every word for visible.
        rules: numbers that decide.
        limit: most lemmas that are counted at once.
    """
    counts = Counts(limit)
    for photo in photos:
        counts.add(photo)
    words = word_table(counts, lexicon, rules)
    judgement = judge(words, stop, lexicon, rules)
    evidence = Evidence(words, candidate_pairs(words, judgement, lexicon, rules))
    known = [noun for noun in rules.fold if lexicon is not None and lexicon.senses(noun) and noun in judgement.kept]
    families = [Family(noun, words, judgement, lexicon, rules) for noun in known if lexicon is not None]
    for photo in photos:
        evidence.add(photo)
        for family in families:
            family.add(photo)
    merges = group(words, judgement, evidence, families, lexicon, rules)
    # A plural of a dropped word is dropped with it.
    parents = {merge.word: merge.into for merge in merges}
    merges = [merge for merge in merges if _root(merge.word, parents) not in judgement.dropped]
    dropped = dict(judgement.dropped)
    dropped.update((word, dropped[root]) for word in parents if (root := _root(word, parents)) in judgement.dropped)
    entries = entries_of(words, judgement.kept, merges, rules)
    chosen, out = select(photos, entries, excluded, rules)
    for word in [*judgement.kept, *(merge.word for merge in merges)]:
        reason = out.get(_root(word, parents))
        if reason is None and words.counts[word] < rules.synonym_count and word in parents:
            reason = "rare"
        if reason is not None:
            dropped[word] = reason
    tally = Tally(ConceptBank([entries[root] for root in chosen], surface_forms=True))
    for photo in photos:
        tally.add(photo)
    concepts = [Chosen(entries[root], tally.captions[i], tally.mentions[i]) for i, root in enumerate(chosen)]
    return Mined(concepts, words, merges, dict(sorted(dropped.items())), counts, tally.first)


def select(
    photos: Iterable[Photo], entries: Mapping[str, Entry], excluded: frozenset[str], rules: Rules
) -> tuple[list[str], dict[str, str]]:
    """The groups that most captions mention, and why the others are not in the bank.

    Returns:
        Roots of the bank, most frequent first (ties by name); the other roots to "excluded", "rare" or "size".
    """
    roots = sorted(entries, key=lambda root: entries[root].name)
    out = {root: "excluded" for root in roots if excluded.intersection(entries[root].words)}
    left = [root for root in roots if root not in out]
    tally = Tally(ConceptBank([entries[root] for root in left], surface_forms=True))
    for photo in photos:
        tally.add(photo)
    ranked = sorted(range(len(left)), key=lambda i: -tally.captions[i])  # stable: ties stay by name
    frequent = [left[i] for i in ranked if tally.captions[i] >= rules.min_count]
    out.update((left[i], "rare") for i in ranked if tally.captions[i] < rules.min_count)
    out.update((root, "size") for root in frequent[rules.size :])
    return frequent[: rules.size], out
