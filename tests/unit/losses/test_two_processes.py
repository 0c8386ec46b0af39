"""One step of training with captions on two real processes (gloo) equals the one-process step on the joint batch."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from simzss.losses.concept import concept_loss, global_prototypes
from simzss.losses.contrastive import contrastive_loss
from simzss.models.pooling import similarity_pool
from tests.support.processes import WORLD
from tests.support.ragged import concept_sums, slots
from tests.unit.losses.loops import averaged_over_ranks, noise

PER_RANK, CONCEPTS, WIDTH = 4, 9, 8
SPANS = {  # (row of the joint batch, start, end, concept)
    "both ranks": [(0, 0, 2, 3), (1, 1, 2, 4), (2, 3, 4, 3), (5, 0, 1, 3), (6, 2, 4, 8), (7, 1, 3, 4), (7, 3, 5, 0)],
    "second rank has none": [(0, 0, 2, 3), (1, 1, 2, 4), (3, 3, 4, 3)],
    "first rank has none": [(4, 0, 2, 3), (6, 1, 2, 4)],
    "no rank has any": [],
}
CASES = list(product(SPANS, ("concept", "argmax")))


def step(case: tuple[str, str], rows: slice) -> dict[str, torch.Tensor]:
    """Loss and gradients of the given rows of the joint batch; `weight` stands for the text tower."""
    spans = [(row - rows.start, *rest) for row, *rest in SPANS[case[0]] if rows.start <= row < rows.stop]
    weight = noise(WIDTH, WIDTH, seed=1).requires_grad_()
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    cls, patches = (F.normalize(noise(WORLD * PER_RANK, *shape, WIDTH, seed=2), dim=-1)[rows] for shape in ((), (6,)))
    tokens = noise(WORLD * PER_RANK, 6, WIDTH, seed=4)[rows] @ weight
    places, start, end, ids = torch.tensor(spans, dtype=torch.long).reshape(-1, 4).T
    sums = concept_sums(tokens, places, start, end, ids, CONCEPTS)
    prototypes, present = global_prototypes(sums, ids)
    pooled = similarity_pool(prototypes[ids], patches, places, *slots(places), 0.1)
    loss = contrastive_loss(cls, F.normalize(tokens.mean(dim=1), dim=-1), scale)
    loss = loss + 0.5 * concept_loss(pooled, prototypes, present, ids, 0.07, case[1])
    loss.backward()
    return {"loss": loss.detach().clone(), "weight": weight.grad, "scale": scale.grad}


def steps_of(rank: int) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    return {case: step(case, slice(rank * PER_RANK, (rank + 1) * PER_RANK)) for case in CASES}


@pytest.fixture(scope="module")
def two_process_results(tmp_path_factory):
    return averaged_over_ranks(steps_of, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_equal_one(case, two_process_results):
    for name, value in step(case, slice(0, WORLD * PER_RANK)).items():
        torch.testing.assert_close(two_process_results[case][name], value, rtol=0, atol=1e-10)
