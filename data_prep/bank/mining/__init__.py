"""Concept mining: which nouns of a corpus make a bank, and which of them are one concept. Pure functions on counts.

The way of the data, one module a step; `propose.mine` goes all the way:

    photos -> `counts`     how many captions hold each noun, and each way to write it
           -> `words`      which strings are one word: number, spelling, plurals with a meaning of their own
           -> `judge`      which words name something that can be seen, by `sight`
           -> `evidence`   what the other captions of a photo say; `family`: the same about the kinds of one noun
           -> `groups`     which words are one concept
           -> `select`     the concepts that most captions mention: the bank

A dictionary proposes and the photos decide. Two captions of one photo that say "poodle" and "dog" show that the two are
one concept for a segmentation; two that say "frisbee" and "dog" show nothing, since neither is a kind of the other.
"""

from data_prep.bank.mining.counts import Mention, mentions_of
from data_prep.bank.mining.groups import Merge
from data_prep.bank.mining.propose import Mined, mine
from data_prep.bank.mining.rules import Rules

__all__ = ["Mention", "Merge", "Mined", "Rules", "mentions_of", "mine"]
