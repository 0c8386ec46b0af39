"""One step on two real processes (gloo) equals the one-process step on the joint batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from simzss.losses.concept import TARGETS, concept_loss, global_prototypes
from simzss.losses.contrastive import contrastive_loss
from simzss.models.pooling import similarity_pool
from tests.support.ragged import concept_sums, slots

WORLD, PER_RANK, CONCEPTS, WIDTH = 2, 4, 9, 8
SPANS = {  # (row of the joint batch, start, end, concept)
    "both ranks": [(0, 0, 2, 3), (1, 1, 2, 4), (2, 3, 4, 3), (5, 0, 1, 3), (6, 2, 4, 8), (7, 1, 3, 4), (7, 3, 5, 0)],
    "second rank has none": [(0, 0, 2, 3), (1, 1, 2, 4), (3, 3, 4, 3)],
    "first rank has none": [(4, 0, 2, 3), (6, 1, 2, 4)],
    "no rank has any": [],
}


def inputs():
    generator = torch.Generator().manual_seed(11)
    shape = (WORLD * PER_RANK, 6, WIDTH)
    tokens, patches = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    cls = torch.randn(WORLD * PER_RANK, WIDTH, dtype=torch.float64, generator=generator)
    weight = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator)
    return tokens, F.normalize(patches, dim=-1), F.normalize(cls, dim=-1), weight


def step(weight, scale, tokens, patches, cls, spans, target):
    """Loss of the rows given; `weight` stands for the text tower."""
    tokens = tokens @ weight
    rows, start, end, ids = torch.tensor(spans, dtype=torch.long).reshape(-1, 4).T
    sums = concept_sums(tokens, rows, start, end, ids, CONCEPTS)
    prototypes, present = global_prototypes(sums, ids)
    pooled = similarity_pool(prototypes[ids], patches, rows, *slots(rows), 0.1)
    contrastive = contrastive_loss(cls, F.normalize(tokens.mean(dim=1), dim=-1), scale)
    return contrastive + 0.5 * concept_loss(pooled, prototypes, present, ids, 0.07, target)


def run_step(spans, target, rows):
    """Loss and gradients of the given rows of the joint batch."""
    tokens, patches, cls, weight = inputs()
    weight = weight.requires_grad_()
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    local = [(row - rows.start, *rest) for row, *rest in spans if rows.start <= row < rows.stop]
    loss = step(weight, scale, tokens[rows], patches[rows], cls[rows], local, target)
    loss.backward()
    return {"loss": loss.detach().clone(), "weight": weight.grad, "scale": scale.grad}


def worker(rank, address, path):
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=WORLD)
    found = {}
    for case, spans in SPANS.items():
        for target in TARGETS:
            result = run_step(spans, target, slice(rank * PER_RANK, (rank + 1) * PER_RANK))
            for value in result.values():  # as DDP: average over ranks
                dist.all_reduce(value)
                value /= WORLD
            found[f"{case}/{target}"] = result
    if rank == 0:
        torch.save(found, path)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_process_results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, (folder / "rendezvous", folder / "results.pt"), nprocs=WORLD)
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", SPANS)
def test_two_processes_equal_one(case, target, two_process_results):
    found = two_process_results[f"{case}/{target}"]
    expected = run_step(SPANS[case], target, slice(0, WORLD * PER_RANK))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)
