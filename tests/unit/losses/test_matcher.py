"""Matching against trying every assignment, its costs against loops. The matcher as a whole: test_mask_module.py."""

import math
from itertools import product

import pytest
import torch

from simzss.losses.matcher import cost_matrix, hungarian_match
from simzss.losses.settings import MaskLossSettings
from tests.unit.losses.loops import bce_of, cheapest, dice_of, drawn, noise, softmax

QUERIES, CLASSES, POINTS = 3, 4, 9
SETTINGS = MaskLossSettings(class_weight=2.0, bce_weight=5.0, dice_weight=3.0, num_points=POINTS)


def check(cost: torch.Tensor, found: tuple[torch.Tensor, torch.Tensor]) -> None:
    queries, objects = found
    assert queries.dtype == objects.dtype == torch.int64
    assert list(zip(queries.tolist(), objects.tolist(), strict=True)) == cheapest(cost)


@pytest.mark.parametrize("worst", [None, math.nan, math.inf])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("queries", "objects"), [(1, 1), (4, 4), (6, 3), (5, 1), (3, 6), (1, 4), (3, 0)])
def test_the_cheapest_assignment(queries, objects, seed, worst):
    cost = noise(queries, objects, seed=seed, scale=100).float()
    if worst is not None and objects > 1 and queries > 1:
        cost[noise(queries, objects, seed=seed + 20) > 0.3] = worst
        cost[0] = worst if seed == 0 else cost[0]
    check(cost, hungarian_match([cost])[0])


def test_images_with_different_numbers_of_objects_in_any_precision():
    costs = [noise(4, count, seed=count).bfloat16().requires_grad_() for count in (2, 0, 4, 1)]
    found = hungarian_match(costs)
    assert len(found) == 4 and hungarian_match([]) == []
    for cost, own in zip(costs, found, strict=True):
        check(cost.detach(), own)


@pytest.mark.parametrize("share", [0.6, 1.0, 0.0])
@pytest.mark.parametrize("part", [None, "class_weight", "bce_weight", "dice_weight"])
def test_cost_matrix(share, part):
    """Whole, and each part by itself; two objects of a class; points that do not count, whatever is there."""
    names = ("class_weight", "bce_weight", "dice_weight")
    weights = SETTINGS if part is None else SETTINGS.replace(**{name: float(name == part) for name in names})
    logits, masks = noise(2, QUERIES, CLASSES + 1, scale=2), noise(2, QUERIES, POINTS, seed=1, scale=5)
    classes = torch.tensor([[2, 0, 2, 3], [1, 1, 0, 3]])
    targets, counted = drawn(2, 4, POINTS), drawn(2, POINTS, seed=1, chance=share)
    found = cost_matrix(logits, masks, classes, targets, counted, weights)
    assert found.shape == (2, QUERIES, 4) and found.dtype == torch.float32
    for i, q, m in product(range(2), range(QUERIES), range(4)):
        points = masks[i, q].tolist(), targets[i, m].tolist(), counted[i].tolist()
        expected = weights.bce_weight * bce_of(*points) + weights.dice_weight * dice_of(*points)
        expected -= weights.class_weight * softmax(logits[i, q].tolist())[int(classes[i, m])]
        assert float(found[i, q, m]) == pytest.approx(expected, abs=1e-5)
    alone = cost_matrix(logits[0], masks[0], classes[0, :0], targets[0, :0], counted[0], weights)
    assert alone.shape == (QUERIES, 0)
