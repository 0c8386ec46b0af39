"""Captions of like length together: no block of a batch is padded further than its own longest caption."""

from collections.abc import Sequence
from itertools import pairwise

_BLOCK_COST = 256
"""Tokens whose work a block of its own costs beside its tokens: 12 layers' worth of small calls (measured on a CPU)."""
_MOST_BLOCKS = 64
"""A block costs at least one part in so many of the batch: the products of a large batch stay large."""


def length_buckets(lengths: Sequence[int], most: int | None = None) -> list[range]:
    """Cut captions in the order of their length into blocks, such that padding and number of blocks cost least.

    Args:
        lengths: tokens of each caption, ascending.
        most: captions of a block at most, None for any number.

    Returns:
        Ranges of positions in `lengths`, one after another.
    """
    # Cuts between captions of equal length save nothing, so the least cost is found over distinct lengths: best[i] is
    # that of the captions before the i-th of them.
    starts = [i for i, length in enumerate(lengths) if i == 0 or length > lengths[i - 1]]
    ends = [*starts[1:], len(lengths)]
    cost = max(_BLOCK_COST, sum(lengths) // _MOST_BLOCKS)
    best, cut = [0], [0]
    for end in ends:
        padded = lengths[end - 1]
        options = [(best[i] + cost + padded * (end - start), i) for i, start in enumerate(starts[: len(best)])]
        least, i = min(options)
        best.append(least)
        cut.append(i)
    blocks: list[range] = []
    place = len(starts)
    while place:
        blocks.append(range(starts[cut[place]], ends[place - 1]))
        place = cut[place]
    blocks.reverse()
    return [part for block in blocks for part in _parts(block, most)]


def _parts(block: range, most: int | None) -> list[range]:
    """The block in as many equal parts as it takes to have `most` captions at most in each."""
    if most is None or len(block) <= most:
        return [block]
    count = -(-len(block) // most)
    edges = [len(block) * i // count for i in range(count + 1)]
    return [block[start:end] for start, end in pairwise(edges)]
