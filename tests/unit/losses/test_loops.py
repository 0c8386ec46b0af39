"""Pooling and both losses against plain loops in float64."""

import math

import pytest
import torch

from simzss.losses.concept import concept_loss, global_prototypes
from simzss.losses.contrastive import contrastive_loss
from simzss.models.pooling import similarity_pool
from tests.support.ragged import concept_sums, slots


def unit(vector):
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(values):
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return [weight / sum(weights) for weight in weights]


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(4, 9, 8, dtype=torch.float64, generator=generator)
    patches = torch.nn.functional.normalize(torch.randn(4, 6, 8, dtype=torch.float64, generator=generator), dim=-1)
    spans = [(0, 1, 3, 5), (0, 4, 5, 2), (1, 0, 1, 5), (3, 2, 6, 0), (3, 7, 9, 2)]  # row, start, end, concept
    return tokens, patches, spans, 7


def loop_prototypes(tokens, spans, num_concepts):
    sums = {}
    for row, start, end, concept in spans:
        for position in range(start, end):
            vector = unit(tokens[row, position].tolist())
            sums[concept] = [a + b for a, b in zip(sums.get(concept, [0.0] * len(vector)), vector, strict=True)]
    return {concept: unit(vector) for concept, vector in sums.items()}


def loop_pool(query, patches, temperature):
    weights = softmax([dot(query, patch) / temperature for patch in patches])
    return unit([sum(w * patch[d] for w, patch in zip(weights, patches, strict=True)) for d in range(len(query))])


def tensors(spans):
    return torch.tensor(spans).T


def test_prototypes_and_pooling(case):
    tokens, patches, spans, num_concepts = case
    rows, start, end, ids = tensors(spans)
    sums = concept_sums(tokens, rows, start, end, ids, num_concepts)
    prototypes, present = global_prototypes(sums, ids)
    expected = loop_prototypes(tokens, spans, num_concepts)
    assert present.tolist() == [concept in expected for concept in range(num_concepts)]
    for concept in range(num_concepts):
        reference = expected.get(concept, [0.0] * 8)
        assert prototypes[concept].tolist() == pytest.approx(reference, abs=1e-12)
    pooled = similarity_pool(prototypes[ids], patches, rows, *slots(rows), 0.1)
    for m, (row, _, _, concept) in enumerate(spans):
        assert pooled[m].tolist() == pytest.approx(loop_pool(expected[concept], patches[row].tolist(), 0.1), abs=1e-12)


@pytest.mark.parametrize("target", ["concept", "argmax"])
def test_concept_loss(case, target):
    tokens, patches, spans, num_concepts = case
    rows, start, end, ids = tensors(spans)
    prototypes, present = global_prototypes(concept_sums(tokens, rows, start, end, ids, num_concepts), ids)
    pooled = similarity_pool(prototypes[ids], patches, rows, *slots(rows), 0.1)
    ours = concept_loss(pooled, prototypes, present, ids, 0.07, target)

    expected = loop_prototypes(tokens, spans, num_concepts)
    total = 0.0
    for row, _, _, concept in spans:
        vector = loop_pool(expected[concept], patches[row].tolist(), 0.1)
        logits = {other: dot(vector, expected[other]) / 0.07 for other in expected}
        label = concept if target == "concept" else max(logits, key=logits.get)
        total += math.log(sum(math.exp(value) for value in logits.values())) - logits[label]
    assert float(ours) == pytest.approx(total / len(spans), abs=1e-10)


def test_contrastive_loss():
    generator = torch.Generator().manual_seed(5)
    image = torch.nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64, generator=generator), dim=-1)
    text = torch.nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64, generator=generator), dim=-1)
    scale = 11.0
    total = 0.0
    for i in range(5):
        row = softmax([scale * dot(image[i].tolist(), text[j].tolist()) for j in range(5)])
        column = softmax([scale * dot(image[j].tolist(), text[i].tolist()) for j in range(5)])
        total -= (math.log(row[i]) + math.log(column[i])) / 2
    ours = contrastive_loss(image, text, torch.tensor(math.log(scale), dtype=torch.float64))
    assert float(ours) == pytest.approx(total / 5, abs=1e-12)


def test_logit_scale_is_clamped_at_100():
    image = torch.eye(3, dtype=torch.float64)
    at_limit = contrastive_loss(image, image.roll(1, 0), torch.tensor(math.log(100.0)))
    beyond = contrastive_loss(image, image.roll(1, 0), torch.tensor(math.log(1e6)))
    assert float(at_limit) == pytest.approx(float(beyond))


def test_no_concept_gives_zero_loss_with_a_gradient():
    sums = torch.zeros(7, 8, requires_grad=True)
    none = torch.empty(0, dtype=torch.long)
    prototypes, present = global_prototypes(sums, none)
    pooled = similarity_pool(prototypes[none], torch.empty(2, 6, 8), none, none, 0, 0.1)
    loss = concept_loss(pooled, prototypes, present, none, 0.07, "concept")
    loss.backward()
    assert loss.item() == 0.0
    assert sums.grad is not None and torch.isfinite(sums.grad).all()
