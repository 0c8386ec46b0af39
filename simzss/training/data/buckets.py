"""Length buckets: captions of similar length share a block, padded to the longest of them."""

from collections.abc import Sequence
from itertools import pairwise

_BLOCK_COST = 256
"""Overhead of a block in tokens: the small calls of 12 layers (measured on a CPU)."""
_MAX_BLOCKS = 64
"""The overhead is at least this part of the batch: the matrix products of a large batch stay large."""


def length_buckets(lengths: Sequence[int], max_size: int | None = None) -> list[range]:
    """Cut captions sorted by length into blocks of the least cost: padded tokens plus an overhead for each block.

    Args:
        lengths: tokens of each caption, ascending.
        max_size: captions of a block at most; None: any number.

    Returns:
        Ranges of positions in `lengths`, one after another.
    """
    # Cuts between captions of equal length save nothing, so the least cost is found over distinct lengths: best[i] is
    # that of the captions before the i-th of them.
    starts = [i for i, length in enumerate(lengths) if i == 0 or length > lengths[i - 1]]
    ends = [*starts[1:], len(lengths)]
    cost = max(_BLOCK_COST, sum(lengths) // _MAX_BLOCKS)
    best, cut = [0], [0]
    for end in ends:
        padded = lengths[end - 1]
        lowest, i = min((best[i] + cost + padded * (end - start), i) for i, start in enumerate(starts[: len(best)]))
        best.append(lowest)
        cut.append(i)
    blocks: list[range] = []
    index = len(starts)
    while index:
        blocks.append(range(starts[cut[index]], ends[index - 1]))
        index = cut[index]
    blocks.reverse()
    return [part for block in blocks for part in _split(block, max_size)]


def _split(block: range, max_size: int | None) -> list[range]:
    """Split a block into as few equal parts as have at most `max_size` captions."""
    if max_size is None or len(block) <= max_size:
        return [block]
    count = -(-len(block) // max_size)
    edges = [len(block) * i // count for i in range(count + 1)]
    return [block[start:end] for start, end in pairwise(edges)]
