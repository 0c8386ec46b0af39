import itertools
import math

import pytest
import torch

from simzss.losses.matcher import match
from tests.unit.models.mask_head.loops import noise


def total(cost: torch.Tensor, pairs: list[tuple[int, int]]) -> tuple[int, float]:
    """Pairs without a number, and the sum of the others."""
    values = [float(cost[query, item]) for query, item in pairs]
    numbers = [value for value in values if math.isfinite(value)]
    return len(values) - len(numbers), sum(numbers)


def cheapest(cost: torch.Tensor) -> set[tuple[int, int]]:
    """By trying every assignment."""
    queries, objects = cost.shape
    if queries >= objects:
        tried = [list(zip(order, range(objects), strict=True))
                 for order in itertools.permutations(range(queries), objects)]  # fmt: skip
    else:
        tried = [list(zip(range(queries), order, strict=True))
                 for order in itertools.permutations(range(objects), queries)]  # fmt: skip
    return set(min(tried, key=lambda pairs: total(cost, pairs)))


def check(cost: torch.Tensor, found: tuple[torch.Tensor, torch.Tensor]) -> None:
    queries, objects = found
    assert queries.dtype == objects.dtype == torch.int64
    assert queries.shape == objects.shape == (min(cost.shape),)
    assert queries.tolist() == sorted(set(queries.tolist())) and len(set(objects.tolist())) == len(objects)
    assert set(zip(queries.tolist(), objects.tolist(), strict=True)) == cheapest(cost)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("queries", "objects"), [(1, 1), (4, 4), (6, 3), (5, 1), (3, 6), (1, 4), (3, 0)], ids=lambda count: str(count)
)
def test_the_cheapest_assignment(queries, objects, seed):
    cost = noise(queries, objects, seed=seed).float()
    check(cost, match([cost])[0])


def test_images_with_different_numbers_of_objects():
    costs = [noise(4, count, seed=count).float() for count in (2, 0, 4, 1)]
    found = match(costs)
    assert len(found) == 4
    for cost, own in zip(costs, found, strict=True):
        check(cost, own)
    assert match([]) == []


def test_the_best_of_one_is_not_the_best_of_all():
    """Each object's own cheapest query is the same one."""
    queries, objects = match([torch.tensor([[0.0, 1.0], [5.0, 9.0], [9.0, 9.5]])])[0]
    assert (queries.tolist(), objects.tolist()) == ([0, 1], [1, 0])


@pytest.mark.parametrize("worst", [math.nan, math.inf])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("queries", "objects"), [(4, 4), (5, 3), (3, 5)])
def test_what_is_no_number_is_the_worst(queries, objects, seed, worst):
    cost = noise(queries, objects, seed=seed).float() * 100
    cost[noise(queries, objects, seed=seed + 20) > 0.3] = worst
    if seed == 0:
        cost[0] = worst
    check(cost, match([cost])[0])


def test_nothing_but_what_is_no_number():
    queries, objects = match([torch.full((3, 2), math.nan)])[0]
    assert len(set(queries.tolist())) == 2 and sorted(objects.tolist()) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_precision_with_or_without_gradient(dtype):
    cost = torch.tensor([[3.0, 1.0], [2.0, 5.0]], dtype=dtype, requires_grad=True)
    queries, objects = match([cost])[0]
    assert (queries.tolist(), objects.tolist()) == ([0, 1], [1, 0])
    assert not queries.requires_grad
