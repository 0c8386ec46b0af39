"""Losses that are computed in chunks equal the plain computation: values and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from simzss.losses.contrastive import contrastive_loss
from simzss.models.pooling import similarity_pool


def unit(*shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def plain_contrastive(cls, pooled, scale):
    """The formula, in one piece."""
    logits = scale.exp() * cls @ pooled.T
    own = torch.arange(len(cls))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def gradients(function, *inputs):
    inputs = [value.clone().requires_grad_() for value in inputs]
    loss = function(*inputs)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("rows", [1, 3, 8, 23, 24])
def test_contrastive_loss(rows):
    inputs = (unit(23, 16, seed=0), unit(23, 16, seed=1), torch.tensor(math.log(30.0)))
    found = gradients(lambda *given: contrastive_loss(*given, rows=rows), *inputs)
    for ours, plain in zip(found, gradients(plain_contrastive, *inputs), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [2, 6])
def test_another_caption_of_the_same_image_is_no_wrong_one(rows):
    image_row = torch.tensor([0, 1, 0, 2, 1, 0])
    cls, pooled = unit(3, 8, seed=2, dtype=torch.float64)[image_row], unit(6, 8, seed=3, dtype=torch.float64)
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j == i or image_row[j] != image_row[i]]
        for side in ([11 * cls[i] @ pooled[j] for j in others], [11 * pooled[i] @ cls[j] for j in others]):
            total += math.log(sum(math.exp(value) for value in side)) - float(side[others.index(i)])
    found = contrastive_loss(cls, pooled, torch.tensor(math.log(11.0), dtype=torch.float64), image_row, rows)
    assert float(found) == pytest.approx(total / 12, abs=1e-10)


def test_images_of_their_own_change_nothing():
    inputs = (unit(5, 8, seed=0), unit(5, 8, seed=1), torch.tensor(2.0))
    assert torch.equal(contrastive_loss(*inputs), contrastive_loss(*inputs, torch.tensor([4, 2, 0, 1, 3])))


@pytest.mark.parametrize("images", [1, 2, 3, 5, 6])
def test_similarity_pool(images):
    rows, slots = torch.tensor([0, 0, 2, 4, 4, 4]), torch.tensor([0, 1, 0, 0, 1, 2])
    queries, patches = unit(6, 8, seed=4), unit(5, 9, 8, seed=5)

    def pool(given, at_a_time):
        return similarity_pool(given, patches, rows, slots, 3, 0.1, at_a_time).square().mul(torch.arange(8.0)).sum()

    def plain(given):
        weights = torch.softmax(torch.einsum("md,mnd->mn", given, patches[rows]) / 0.1, dim=-1)
        pooled = F.normalize(torch.einsum("mn,mnd->md", weights, patches[rows]), dim=-1)
        return pooled.square().mul(torch.arange(8.0)).sum()

    found = gradients(lambda given: pool(given, images), queries)
    for ours, expected in zip(found, gradients(plain, queries), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_patches_are_computed_with_in_the_type_of_the_queries():
    rows, slots = torch.tensor([0, 1]), torch.tensor([0, 0])
    queries, patches = unit(2, 8, seed=6), unit(2, 9, 8, seed=7).bfloat16()
    found = similarity_pool(queries, patches, rows, slots, 1, 0.1)
    assert torch.equal(found, similarity_pool(queries, patches.float(), rows, slots, 1, 0.1))
