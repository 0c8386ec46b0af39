"""Decide which hyponyms of one noun, such as "person", are merged into it."""

from collections import Counter
from collections.abc import Callable

from .counts import Photo
from .filter import FilteredWords
from .rules import Rules
from .visual_senses import Lexicon, VisualSenses
from .words import Words, parts

# Most photos show a person, whom other captions name anyway: where the dictionary is not certain, nearly all of a
# word's photos must name the group, and the less likely the word is to mean one, the more rarely its own caption may.
_BESIDE = 0.9
_ALONE_LIKELY, _ALONE_DOUBTFUL = 0.15, 0.6
_DOUBTFUL = 0.1  # share of a noun's uses above which photos are asked at all


class HyponymGroup:
    """Hyponyms that may be merged into a noun: kinds of it or groups of such, and what photos say about them.

    Args:
        noun: such as "person"; its first meaning counts.
        words: the words of the corpus.
        filtered: those of them that can be seen.
        visual: the dictionary.
        rules: numbers that decide.

    Attributes:
        certain: words that nearly always mean one.
        likely: words that mean one, or a group, more often than not; compounds that the lexicon lacks, by their head;
            for persons also unlisted words that look like an agent ("kayaker").
        asked: all words of which photos are asked: these, and those that may mean one ("mug"), without the noun itself.
    """

    def __init__(self, noun: str, words: Words, filtered: FilteredWords, visual: VisualSenses, rules: Rules) -> None:
        self.noun = noun
        self._words = words
        self._sight = visual
        self._lexicon = visual.lexicon
        self._rules = rules
        self._known: dict[str, bool] = {}
        self._root = self._lexicon.senses(noun)[0].synset
        self._people = noun == "person"
        self._groups = {sense.synset for sense in self._lexicon.senses("social group")} if self._people else set()
        self._captions: Counter[str] = Counter()
        self._alone: Counter[str] = Counter()
        self._photos: Counter[str] = Counter()
        self._beside: Counter[str] = Counter()
        others = filtered.kept - {noun}
        certain = {word for word in others if self._share(word, self._is_one) >= rules.certain}
        self.certain = frozenset(certain | {noun})
        self.likely = frozenset(word for word in others - certain if self._probably(word))
        doubtful = {word for word in others if self._share(word, self.has) > _DOUBTFUL}
        self.asked = certain | self.likely | doubtful

    def has(self, synset: str) -> bool:
        """Tell whether a synset is a kind of the noun, or a group of such."""
        return self._is_one(synset) or not self._groups.isdisjoint(self._lexicon.kinds(synset))

    def add(self, photo: Photo) -> None:
        """Count one photo: which of its words stand alone, and whether its other captions name the group."""
        captions = [self._words.of_caption(mentions) for mentions in photo]
        naming = [caption & self.certain for caption in captions]
        beside: set[str] = set()
        for index, caption in enumerate(captions):
            for word in caption & self.asked:
                self._captions[word] += 1
                self._alone[word] += not naming[index] - {word}
                if any(others - {word} for other, others in enumerate(naming) if other != index):
                    beside.add(word)
        if len(photo) > 1:
            self._photos.update(set().union(*captions) & self.asked)
        self._beside.update(beside)

    def evidence(self, word: str) -> tuple[float | None, float]:
        """Return the share of a word's photos whose other captions name the group, and of its captions that do not.

        "A runner" is one where others see "a man"; "a boy in a hood" names the boy himself. The first is None where too
        few photos have other captions.
        """
        photos = self._photos[word]
        alone = self._alone[word] / max(self._captions[word], 1)
        return (self._beside[word] / photos if photos >= self._rules.fold_witnesses else None), alone

    def fold(self) -> dict[str, float | None]:
        """Return the words that are merged, with the share of their photos whose other captions name the group."""
        folded: dict[str, float | None] = {}
        for word in sorted(self.asked, key=lambda word: (word.count(" "), word)):  # heads before their compounds
            modifier, head = parts(word)
            share, alone = self.evidence(word)
            if word in self.certain:
                yes = share is None or share >= self._rules.same or self._sight.settled(self._words.listed(word))
            elif share is None:
                yes = bool(modifier) and (head == self.noun or head in folded)
            else:
                yes = share >= _BESIDE and alone >= (_ALONE_LIKELY if word in self.likely else _ALONE_DOUBTFUL)
            if yes:
                folded[word] = share
        return folded

    def _share(self, word: str, wanted: Callable[[str], bool]) -> float:
        return self._sight.share(self._words.listed(word), wanted)

    def _probably(self, word: str) -> bool:
        """Tell whether a word means one, or a group, more often than not."""
        if self._lexicon.senses(self._words.listed(word)):
            return self._share(word, self.has) >= self._rules.sure
        head = parts(word)[1]
        if self._lexicon.senses(self._words.listed(head)):
            return self._share(head, self.has) >= self._rules.sure
        return self._people and _agent(head, self._lexicon)

    def _is_one(self, synset: str) -> bool:
        """Tell whether a synset is a kind of the noun, or of a group with listed members that are ("people")."""
        if synset not in self._known:
            kinds = self._lexicon.kinds(synset)
            self._known[synset] = self._root in kinds or any(
                self._root in self._lexicon.kinds(member) for kind in kinds for member in self._lexicon.members(kind)
            )
        return self._known[synset]


def _agent(word: str, lexicon: Lexicon) -> bool:
    """Tell whether an unlisted word is made of a listed one and "er": "kayaker", "biker", "rollerblader"."""
    if not word.endswith("er"):
        return False
    stems = [word[:-2], word[:-1], *([word[:-3]] if word[-4:-3] == word[-3:-2] else [])]
    return any(len(stem) > 2 and (lexicon.senses(stem) or lexicon.other_part_of_speech(stem)) for stem in stems)
