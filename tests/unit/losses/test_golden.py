"""One step with the original release's settings equals the numbers that the release produced."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simzss.losses.concept import concept_loss, global_prototypes
from simzss.losses.contrastive import contrastive_loss
from simzss.models.pooling import similarity_pool
from tests.support.ragged import concept_sums, slots

TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def golden():
    path = Path(__file__).parents[2] / "golden" / "simzss_step.npz"
    with np.load(path) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def test_release_step(golden):
    tokens = golden["token_vectors"].clone().requires_grad_()
    pooled_text = golden["pooled"].clone().requires_grad_()
    ids = golden["concept_id"]

    spans = (golden["concept_image"], golden["concept_token_start"], golden["concept_token_end"])
    prototypes, present = global_prototypes(concept_sums(tokens, *spans, ids, int(golden["num_concepts"])), ids)
    pooled = similarity_pool(
        prototypes[ids],
        golden["patches"],
        golden["concept_image"],
        *slots(golden["concept_image"]),
        float(golden["temperature"]),
    )
    temperature = 1 / float(golden["logit_scale"])
    argmax = concept_loss(pooled, prototypes, present, ids, temperature, "argmax")
    own = concept_loss(pooled, prototypes, present, ids, temperature, "concept")
    contrastive = contrastive_loss(golden["cls"], F.normalize(pooled_text, dim=-1), golden["logit_scale"].float().log())
    total = contrastive + float(golden["concept_weight"]) * argmax
    total.backward()

    torch.testing.assert_close(prototypes, golden["prototypes"], **TOLERANCE)
    assert torch.equal(present, golden["prototype_present"])
    torch.testing.assert_close(pooled, golden["pooled_patches"], **TOLERANCE)
    for ours, name in (
        (contrastive, "loss_contrastive"),
        (argmax, "loss_concept_argmax"),
        (own, "loss_concept_id"),
        (total, "loss_total_release"),
    ):
        assert ours.item() == pytest.approx(float(golden[name]), abs=1e-5), name
    torch.testing.assert_close(tokens.grad, golden["grad_token_vectors"], **TOLERANCE)
    # `pooled` is a unit vector already: normalising it again removes the radial part of the gradient.
    expected = golden["grad_pooled"]
    tangent = expected - (expected * golden["pooled"]).sum(-1, keepdim=True) * golden["pooled"]
    torch.testing.assert_close(pooled_text.grad, tangent, **TOLERANCE)


def test_contrastive_gradient_is_the_release_gradient(golden):
    pooled_text = golden["pooled"].clone().requires_grad_()
    contrastive_loss(golden["cls"], pooled_text, golden["logit_scale"].float().log()).backward()
    torch.testing.assert_close(pooled_text.grad, golden["grad_pooled"], **TOLERANCE)
