"""Prototypes, pooling and the concept loss against plain loops in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simzss.losses.concept import concept_loss, global_prototypes
from simzss.models.pooling import similarity_pool
from tests.support.ragged import concept_sums, slots
from tests.unit.losses.loops import noise, softmax

CONCEPTS = 7
SPANS = [(0, 1, 3, 5), (0, 4, 5, 2), (1, 0, 1, 5), (3, 2, 6, 0), (3, 7, 9, 2)]  # row, start, end, concept
TOKENS, PATCHES = noise(4, 9, 8), F.normalize(noise(4, 6, 8, seed=1), dim=-1)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(sum(vector**2))


def pooled_by_loop(query: np.ndarray, patches: np.ndarray) -> np.ndarray:
    weights = softmax([query @ patch / 0.1 for patch in patches])
    return unit(sum(weight * patch for weight, patch in zip(weights, patches, strict=True)))


@pytest.mark.parametrize("target", ["concept", "argmax"])
def test_concept_loss(target):
    rows, start, end, ids = torch.tensor(SPANS).T
    prototypes, present = global_prototypes(concept_sums(TOKENS, rows, start, end, ids, CONCEPTS), ids)
    expected = {}
    for row, first, stop, concept in SPANS:
        for position in range(first, stop):
            expected[concept] = expected.get(concept, 0) + unit(TOKENS[row, position].numpy())
    expected = {concept: unit(total) for concept, total in expected.items()}
    assert present.tolist() == [concept in expected for concept in range(CONCEPTS)]
    for concept in range(CONCEPTS):
        assert prototypes[concept].tolist() == pytest.approx(expected.get(concept, np.zeros(8)), abs=1e-12)

    pooled, total = similarity_pool(prototypes[ids], PATCHES, rows, *slots(rows), 0.1), 0.0
    for own, (row, _, _, concept) in zip(pooled, SPANS, strict=True):
        vector = pooled_by_loop(expected[concept], PATCHES[row].numpy())
        assert own.tolist() == pytest.approx(vector, abs=1e-12)
        logits = {other: vector @ expected[other] / 0.07 for other in expected}
        label = concept if target == "concept" else max(logits, key=logits.get)
        total += math.log(sum(math.exp(value) for value in logits.values())) - logits[label]
    loss = concept_loss(pooled, prototypes, present, ids, 0.07, target)
    assert float(loss) == pytest.approx(total / len(SPANS), abs=1e-10)


def test_no_concept_gives_zero_loss_with_a_gradient():
    sums = torch.zeros(CONCEPTS, 8, requires_grad=True)
    none = torch.empty(0, dtype=torch.long)
    prototypes, present = global_prototypes(sums, none)
    pooled = similarity_pool(prototypes[none], torch.empty(2, 6, 8), none, none, 0, 0.1)
    loss = concept_loss(pooled, prototypes, present, none, 0.07, "concept")
    loss.backward()
    assert loss.item() == 0.0
    assert sums.grad is not None and torch.isfinite(sums.grad).all()
