import math

import numpy as np
import pytest
import torch

from simzss.multires.ensemble import class_maps, ensemble, pool_by_masks
from tests.unit.multires import loops
from tests.unit.multires.loops import close, noise

# Pooling --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(2, 3), (8, 12), (4, 5), (12, 16)], ids=str)
def test_pooling_equals_a_loop(size):
    masks, features = noise(2, 3, 8, 12) * 3, noise(2, 5, *size, seed=1, mean=0.5)
    found = pool_by_masks(masks, features)
    assert found.shape == (2, 3, 5) and found.dtype == torch.float32
    for image in range(2):
        weights = loops.resized(loops.sigmoid(masks[image].numpy()), size, antialias=True)
        for query in range(3):
            total, mass = np.zeros(5), 0.0
            for y in range(size[0]):
                for x in range(size[1]):
                    total += weights[query, y, x] * features[image, :, y, x].numpy()
                    mass += weights[query, y, x]
            close(found[image, query], total / mass, 1e-5)


def test_a_sharp_mask_sees_what_is_inside():
    features = noise(1, 4, 3, 3).float()
    masks = torch.full((1, 9, 3, 3), -40.0)
    for cell in range(9):
        masks[0, cell, cell // 3, cell % 3] = 40.0
    torch.testing.assert_close(pool_by_masks(masks, features)[0], features[0].flatten(1).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logit", [-1e4, -100.0, 1e4])
def test_an_empty_mask_gives_numbers(logit):
    features = noise(1, 4, 3, 3).float()
    found = pool_by_masks(torch.full((1, 2, 6, 6), logit), features)
    assert found.isfinite().all() and found.abs().max() <= features.abs().max()


def test_bfloat16_is_pooled_in_float32():
    masks, features = noise(1, 2, 4, 4).bfloat16(), noise(1, 5, 2, 2, seed=1).bfloat16()
    assert pool_by_masks(masks, features).equal(pool_by_masks(masks.float(), features.float()))


# Classes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [[0.0] * 4, [1.0] * 4, [0.4] * 4, [0.4, 0.8, 0.0, 1.0]], ids=str)
def test_the_ensemble_equals_a_loop(share):
    learned, zero_shot = noise(2, 3, 5) * 3, noise(2, 3, 4, seed=1) * 3
    found = ensemble(learned, zero_shot, torch.tensor(share, dtype=torch.float64))
    for image in range(2):
        for query in range(3):
            every = loops.softmax(learned[image, query].numpy())
            mine, theirs = every[:4] / sum(every[:4]), loops.softmax(zero_shot[image, query].numpy())
            mixed = np.array([mine[k] ** (1 - share[k]) * theirs[k] ** share[k] for k in range(4)])
            close(found[image, query], mixed / sum(mixed) * (1 - every[4]))


def test_alone_the_head_says_what_it_has_learned():
    learned = noise(1, 3, 5) * 3
    found = ensemble(learned, noise(1, 3, 4, seed=1), torch.zeros(4))
    torch.testing.assert_close(found, learned.softmax(dim=-1)[..., :-1])


def test_the_sum_is_the_probability_of_an_object():
    learned = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, math.log(6)], [1.0, 2.0, -200.0], [1.0, 2.0, 200.0]]])
    found = ensemble(learned, torch.zeros(1, 4, 2), torch.tensor([0.4, 0.8])).sum(dim=2)
    torch.testing.assert_close(found, torch.tensor([[2 / 3, 0.25, 1.0, 0.0]]), rtol=1e-5, atol=1e-6)


# Maps -----------------------------------------------------------------------------------------------------------------


def probabilities(queries: int, classes: int, amount: float) -> torch.Tensor:
    """Of classes, `amount` being that of an object."""
    return noise(2, queries, classes).softmax(dim=-1) * amount


@pytest.mark.parametrize(("queries", "amount", "mean"), [(6, 0.9, 1.0), (1, 0.9, 0.0), (3, 0.3, 0.0), (3, 0.02, -3.0)])
def test_maps_equal_a_loop(queries, amount, mean):
    found_by, masks = probabilities(queries, 4, amount), noise(2, queries, 3, 5, seed=1, mean=mean)
    maps = class_maps(found_by.float(), masks)
    assert maps.shape == (2, 4, 3, 5)
    sides = set()
    for image in range(2):
        for y in range(3):
            for x in range(5):
                values = np.zeros(4)
                for query in range(queries):
                    inside = 1 / (1 + math.exp(-float(masks[image, query, y, x])))
                    values += found_by[image, query].numpy() * inside
                claimed = sum(values)
                sides.add(claimed > 1)
                expected = values / claimed if claimed > 1 else values + (1 - claimed) / 4
                close(maps[image, :, y, x], expected, 1e-6)
    assert (True in sides) == (queries == 6)


@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("queries", [1, 20])
def test_maps_sum_to_one(queries, amount):
    maps = class_maps(probabilities(queries, 3, amount).float(), noise(2, queries, 4, 4, seed=1).float() * 5)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, 4, 4), rtol=1e-5, atol=1e-5)


def test_where_nothing_is_claimed_all_classes_are_equal():
    masks = torch.full((1, 2, 2, 2), -100.0)
    masks[0, :, 0, 0] = 100.0
    maps = class_maps(torch.tensor([[[0.7, 0.1, 0.0, 0.0], [0.9, 0.0, 0.1, 0.2]]]), masks)
    torch.testing.assert_close(maps[0, :, 1, 1], torch.full((4,), 0.25))
    torch.testing.assert_close(maps[0, :, 0, 0], torch.tensor([0.8, 0.05, 0.05, 0.1]))
