import numpy as np
import pytest
import torch

from simzss.models.mask_head.ensemble import geometric_ensemble, mask_pool, semantic_inference
from tests.unit.models.mask_head import loops
from tests.unit.models.mask_head.loops import close, noise


@pytest.mark.parametrize("size", [(2, 3), (8, 12), (4, 5), (12, 16)], ids=str)
def test_pooling_equals_a_loop(size):
    masks, features = noise(2, 3, 8, 12).bfloat16() * 3, noise(2, 5, *size, seed=1, mean=0.5).bfloat16()
    found = mask_pool(masks, features)
    assert found.shape == (2, 3, 5) and found.dtype == torch.float32
    for image in range(2):
        weights = loops.resized(loops.sigmoid(masks[image].double().numpy()), size, antialias=True)
        total = np.einsum("qhw,dhw->qd", weights, features[image].double().numpy())
        close(found[image], total / weights.sum(axis=(1, 2))[:, None], 1e-5)


@pytest.mark.parametrize("logit", [-1e4, -100.0, 1e4])
def test_an_empty_mask_gives_numbers(logit):
    features = noise(1, 4, 3, 3).float()
    found = mask_pool(torch.full((1, 2, 6, 6), logit), features)
    assert found.isfinite().all() and found.abs().max() <= features.abs().max()


def test_semantic_inference_equals_a_loop():
    logits, masks = noise(2, 3, 5) * 2, noise(2, 3, 4, 6, seed=1) * 3
    logits[0, 0] = torch.tensor([0.0, 0, 0, 0, 200])  # no object, whatever its mask
    found = semantic_inference(logits.float(), masks.float())
    for image in range(2):
        close(found[image], loops.semantic(logits[image].numpy(), masks[image].numpy()), 1e-5)


@pytest.mark.parametrize("exponents", [[0.0] * 4, [1.0] * 4, [0.4] * 4, [0.6, 0.9, 0.0, 1.0]], ids=str)
@pytest.mark.parametrize("amount", [0.0, 0.01, 0.25, 1.0])
def test_the_ensemble_equals_a_loop(exponents, amount):
    learned, zero_shot = noise(2, 4, 3, 5).abs() * amount, noise(2, 4, 3, 5, seed=1) * 3
    found = geometric_ensemble(learned, zero_shot, torch.tensor(exponents))
    for image in range(2):
        close(found[image], loops.ensemble(learned[image].numpy(), zero_shot[image].numpy(), exponents), 1e-6)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 3, 5).double(), rtol=1e-6, atol=1e-6)
    if amount == 0 and min(exponents) == max(exponents) > 0:  # the frozen model decides
        assert found.argmax(dim=1).equal(zero_shot.argmax(dim=1))
