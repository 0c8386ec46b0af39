"""The contrastive loss against loops in float64, and in chunks: values and gradients. Pooling in chunks likewise."""

import math

import pytest
import torch
import torch.nn.functional as F

from simzss.losses.contrastive import contrastive_loss
from simzss.models.pooling import similarity_pool
from tests.unit.losses.loops import noise, softmax


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(noise(*shape, seed=seed), dim=-1)


def gradients(function, *inputs):
    inputs = [value.clone().requires_grad_() for value in inputs]
    loss = function(*inputs)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("rows", [1, 3, 8, 23, 24])
def test_chunks_equal_the_formula_in_one_piece(rows):
    inputs = (unit(23, 16, seed=0), unit(23, 16, seed=1), torch.tensor(math.log(30.0)).double())

    def plain(cls, pooled, scale):
        logits, own = scale.exp() * cls @ pooled.T, torch.arange(23)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    found = gradients(lambda *given: contrastive_loss(*given, rows=rows), *inputs)
    torch.testing.assert_close(found, gradients(plain, *inputs), rtol=1e-10, atol=1e-12)
    of_their_own = contrastive_loss(*inputs, torch.randperm(23), rows)
    torch.testing.assert_close(of_their_own, found[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("rows", [2, 6])
def test_another_caption_of_the_same_image_is_no_negative(rows):
    image_row = torch.tensor([0, 1, 0, 2, 1, 0])
    cls, pooled = unit(3, 8, seed=2)[image_row], unit(6, 8, seed=3)
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j == i or image_row[j] != image_row[i]]
        for side in ([11 * cls[i] @ pooled[j] for j in others], [11 * pooled[i] @ cls[j] for j in others]):
            total -= math.log(softmax([float(value) for value in side])[others.index(i)])
    found = contrastive_loss(cls, pooled, torch.tensor(math.log(11.0), dtype=torch.float64), image_row, rows)
    assert float(found) == pytest.approx(total / 12, abs=1e-10)


def test_logit_scale_is_clamped_at_100():
    image = torch.eye(3, dtype=torch.float64)
    at_limit, beyond = (contrastive_loss(image, image.roll(1, 0), torch.tensor(math.log(n))) for n in (100.0, 1e6))
    assert float(at_limit) == pytest.approx(float(beyond))


@pytest.mark.parametrize("images", [1, 2, 3, 5, 6])
def test_similarity_pool(images):
    rows, slots = torch.tensor([0, 0, 2, 4, 4, 4]), torch.tensor([0, 1, 0, 0, 1, 2])
    queries, patches = unit(6, 8, seed=4), unit(5, 9, 8, seed=5).bfloat16()  # computed in the type of the queries

    def pool(given):
        return similarity_pool(given, patches, rows, slots, 3, 0.1, images).square().mul(torch.arange(8.0)).sum()

    def plain(given):
        weights = torch.softmax(torch.einsum("md,mnd->mn", given, patches[rows].double()) / 0.1, dim=-1)
        pooled = F.normalize(torch.einsum("mn,mnd->md", weights, patches[rows].double()), dim=-1)
        return pooled.square().mul(torch.arange(8.0)).sum()

    torch.testing.assert_close(gradients(pool, queries), gradients(plain, queries), rtol=1e-10, atol=1e-12)
