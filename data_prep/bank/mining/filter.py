"""Select the words of a corpus that name something that can be seen."""

import re
from dataclasses import dataclass

from .rules import Rules
from .visual_senses import VisualSenses
from .words import Words, parts

_WORD = re.compile(r"(?=..)[^\W\d_]+(?:[ '’-][^\W\d_]+)*")
_NO_NOUN = ("less", "ful", "ly", "ed")  # endings of words that no dictionary lists: "shirtless"
# Share of a compound's captions, and at most of its head's, that write a plural where it is a verb.
_VERB, _HEAD = 0.8, 0.4


@dataclass(frozen=True)
class FilteredWords:
    """Words that name something that can be seen, and why the others do not.

    Attributes:
        kept: words that name something that can be seen.
        meaning: kept word to the synset that it most likely means; no entry for a word that the lexicon lacks.
        dropped: other words, to the reason: "rare", "no word", "stop", "invisible", "no noun", "verb" or "inflected".
    """

    kept: frozenset[str]
    meaning: dict[str, str]
    dropped: dict[str, str]


def filter_words(words: Words, stop: frozenset[str], visual: VisualSenses | None, rules: Rules) -> FilteredWords:
    """Select words that name something that can be seen; without a dictionary, whatever is no stop word.

    A compound that the lexicon lacks is candidates by its head: "tan dog" is a dog, "tan colour" is nothing to see.
    """
    candidates = sorted(words.counts.keys() - words.merged.keys())
    reasons = {
        word: "rare" if words.counts[word] < rules.synonym_count else _unfit(word, words, stop, visual, rules)
        for word in candidates
    }
    kept = [word for word in candidates if reasons[word] is None]
    meanings = {word: visual.meaning(words.listed(word)) for word in kept} if visual is not None else {}
    return FilteredWords(
        frozenset(kept),
        {word: meaning for word, meaning in meanings.items() if meaning is not None},
        {word: reason for word, reason in reasons.items() if reason is not None},
    )


def _unfit(word: str, words: Words, stop: frozenset[str], visual: VisualSenses | None, rules: Rules) -> str | None:
    """Return why a word is no concept; None if it is one."""
    if _WORD.fullmatch(word) is None:
        return "no word"
    modifier, head = parts(word)
    if word in stop:
        return "stop"
    if visual is None:
        return "stop" if head in stop else None
    known = words.listed(word)
    if visual.lexicon.senses(known):
        return None if visual.weights(known) else "invisible"
    if not modifier:
        return "no noun" if visual.lexicon.other_part_of_speech(word) or word.endswith(_NO_NOUN) else None
    if head in stop:
        return "stop"
    rare = words.counts[word] < rules.min_count
    return _unfit_head(word, words, visual) or ("inflected" if rare and _inflected(modifier, visual) else None)


def _unfit_head(word: str, words: Words, visual: VisualSenses) -> str | None:
    """Return why a compound that the lexicon lacks is no concept, by its head."""
    _, head = parts(word)
    known, other = words.listed(head), visual.lexicon.other_part_of_speech(head)
    if not visual.lexicon.senses(known):
        return "no noun" if other else None
    if not visual.weights(known):
        return "invisible"
    # "a dog splashes": the parser takes such verbs for plurals. Alone, the noun is seldom written so.
    often, alone = words.often_plural.get(word, 0), words.often_plural.get(head, 0)
    return "verb" if often >= _VERB and alone < _HEAD and known == head and other else None


def _inflected(modifier: str, visual: VisualSenses) -> bool:
    """Tell whether a word of the modifier is a form of another one and names nothing by itself.

    "A dog drinks water", "the dogs mouth" and "splashing water" are no compounds, "building site" and "glasses case"
    are. The frequent ones are, too: "sports field", "climbing wall".
    """
    return any(
        word.endswith(("s", "ing"))
        and not visual.weights(word)
        and any(visual.lexicon.base(word, part) not in (None, word) for part in ("n", "v"))
        for word in modifier.split()
    )
