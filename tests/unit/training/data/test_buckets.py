"""Length buckets against an exhaustive search."""

import random
from itertools import combinations, pairwise

import pytest

from simzss.training.data.buckets import length_buckets

COST = 256


def cost(lengths, edges):
    return sum(COST + (end - start) * lengths[end - 1] for start, end in pairwise(edges))


def least_cost(lengths):
    inner = range(1, len(lengths))
    ways = (cut for count in range(len(lengths)) for cut in combinations(inner, count))
    return min(cost(lengths, [0, *cut, len(lengths)]) for cut in ways)


@pytest.mark.parametrize("seed", range(8))
def test_no_way_to_cut_costs_less(seed):
    rng = random.Random(seed)
    lengths = sorted(rng.choice((3, 9, 12, 70, 150, 400)) for _ in range(rng.randint(1, 11)))
    blocks = length_buckets(lengths)
    assert [position for block in blocks for position in block] == list(range(len(lengths)))
    assert cost(lengths, [0, *(block.stop for block in blocks)]) == least_cost(lengths)


def test_captions_of_one_length_stay_together():
    assert length_buckets([7] * 500) == [range(500)]


def test_a_few_long_captions_do_not_lengthen_the_others():
    lengths = [11] * 200 + [70] * 4
    assert length_buckets(lengths) == [range(200), range(200, 204)]


def test_real_lengths_are_hardly_padded():
    rng = random.Random(0)
    lengths = sorted(min(77, 8 + int(rng.expovariate(1 / 5))) for _ in range(16_384))
    blocks = length_buckets(lengths)
    padded = sum(len(block) * lengths[block.stop - 1] for block in blocks)
    assert padded < 1.1 * sum(lengths) and len(blocks) <= 20


@pytest.mark.parametrize(("max_size", "sizes"), [(None, [7]), (7, [7]), (6, [3, 4]), (3, [2, 2, 3]), (1, [1] * 7)])
def test_max_size(max_size, sizes):
    assert [len(block) for block in length_buckets([5] * 7, max_size)] == sizes
