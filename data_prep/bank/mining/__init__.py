"""Mine a concept bank from the nouns of a corpus; nouns that are one concept are merged. Pure functions on counts.

One module a step; `propose.mine` runs them all:

    photos -> `counts`     how many captions hold each noun, and each way to write it
           -> `words`      which strings are one word: number, spelling, plurals with a meaning of their own
           -> `filter`     words that name something that can be seen, by `visual_senses`
           -> `evidence`   what the other captions of a photo say; `hyponyms`: the same about kinds of one noun
           -> `groups`     which words are one concept
           -> `select`     the concepts that most captions mention: the bank

A dictionary proposes and the photos decide. Two captions of one photo that say "poodle" and "dog" show that the two are
one concept for a segmentation; two that say "frisbee" and "dog" show nothing, since neither is a kind of the other.
"""

from .counts import Mention, mentions_of
from .groups import Merge
from .propose import Mined, mine
from .rules import Rules

__all__ = ["Mention", "Merge", "Mined", "Rules", "mentions_of", "mine"]
