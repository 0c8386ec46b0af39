import numpy as np
import pytest
import torch

from simzss.models.mask_head.ensemble import claims, ensemble, pool_by_masks
from tests.unit.models.mask_head import loops
from tests.unit.models.mask_head.loops import close, noise

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


# Claims ---------------------------------------------------------------------------------------------------------------


def test_claims_equal_a_loop():
    learned, masks = noise(2, 3, 5) * 2, noise(2, 3, 4, 6, seed=1) * 3
    found = claims(learned.float(), masks.float())
    assert found.shape == (2, 4, 4, 6)
    for image in range(2):
        total = np.zeros((4, 4, 6))
        for query in range(3):
            chances = loops.softmax(learned[image, query].numpy())
            for k in range(4):
                total[k] += chances[k] * loops.sigmoid(masks[image, query].numpy())
        close(found[image], total, 1e-5)


def test_a_query_without_an_object_claims_nothing():
    learned = torch.tensor([[[0.0, 0.0, 200.0], [0.0, 0.0, -200.0]]])
    found = claims(learned, torch.tensor([100.0, -100.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(found, torch.zeros(1, 2, 1, 1))


# Classes of places ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [[0.0] * 4, [1.0] * 4, [0.4] * 4, [0.6, 0.9, 0.0, 1.0]], ids=str)
@pytest.mark.parametrize("amount", [0.01, 0.25, 1.0])
def test_the_ensemble_equals_a_loop(share, amount):
    claimed = noise(2, 4, 3, 5).abs() * amount
    zero_shot = noise(2, 4, 3, 5, seed=1) * 3
    found = ensemble(claimed, zero_shot, torch.tensor(share))
    sides = set()
    for image in range(2):
        for y in range(3):
            for x in range(5):
                mine, theirs = claimed[image, :, y, x].numpy(), loops.softmax(zero_shot[image, :, y, x].numpy())
                total = sum(mine)
                mixed = np.array([(mine[k] + 0.001) ** (1 - share[k]) * theirs[k] ** share[k] for k in range(4)])
                # the divisor of the claims differs from class to class by its exponent
                mixed /= np.array([(total + 0.004) ** (1 - share[k]) for k in range(4)])
                present = min(1.0, max(0.001, total))
                sides.add(total > 1)
                close(found[image, :, y, x], present * mixed / sum(mixed) + (1 - present) / 4, 1e-6)
    assert (True in sides) == (amount > 0.1)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 3, 5).double(), rtol=1e-6, atol=1e-6)


def test_where_nothing_is_claimed_all_classes_are_nearly_equal_and_the_frozen_model_decides():
    seen = noise(1, 4, 2, 2).float() * 9
    found = ensemble(torch.zeros(1, 4, 2, 2), seen, torch.full((4,), 0.6))
    torch.testing.assert_close(found, torch.full((1, 4, 2, 2), 0.25), rtol=0, atol=1e-3)
    assert found.argmax(dim=1).equal(seen.argmax(dim=1))


def test_alone_the_head_says_what_it_has_learned():
    claimed = torch.tensor([0.5, 0.3, 0.2, 0.0]).view(1, 4, 1, 1)
    found = ensemble(claimed, noise(1, 4, 1, 1).float() * 9, torch.zeros(4))
    torch.testing.assert_close(found, claimed, rtol=0, atol=2e-3)  # as far as the floor lets it
