"""The baseline is the original step: the release's own numbers come out, and ours from the same features."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.original import (
    EMPTY,
    CaptionImages,
    OriginalStep,
    PaddedBatch,
    original_losses,
    padded_batches,
    padded_table,
    padded_text,
)
from simzss.losses.settings import LossSettings
from simzss.models.simzss import SimZSS
from simzss.training.data.encoding import EncodedCaption
from simzss.training.settings import OptimSettings
from tests.support.files import image_bytes
from tests.support.models import make_backbone, make_scratch

TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def golden():
    path = Path(__file__).parents[2] / "golden" / "simzss_step.npz"
    with np.load(path) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


@pytest.fixture(scope="module")
def table(golden):
    """Put the golden phrases in a padded table, with more slots and tokens than they need."""
    captions = [[] for _ in golden["cls"]]
    names = ("concept_image", "concept_id", "concept_token_start", "concept_token_end")
    for image, *span in zip(*(golden[name].tolist() for name in names), strict=True):
        captions[image].append(tuple(span))
    return padded_table([EncodedCaption((), tuple(spans)) for spans in captions], slots=4, max_tokens=3)


def test_losses_are_those_of_the_release(golden, table):
    tokens = golden["token_vectors"].clone().requires_grad_()
    pooled = golden["pooled"].clone().requires_grad_()
    scale = golden["logit_scale"].float()
    found = original_losses(
        golden["cls"],
        golden["patches"],
        pooled,
        tokens,
        *table,
        num_concepts=int(golden["num_concepts"]),
        logit_scale=scale,
        concept_scale=float(scale),
        pool_temperature=float(golden["temperature"]),
        weight=float(golden["concept_weight"]),
    )
    found.total.backward()
    for ours, name in (
        (found.contrastive, "loss_contrastive"),
        (found.concept, "loss_concept_argmax"),
        (found.total, "loss_total_release"),
    ):
        assert ours.item() == pytest.approx(float(golden[name]), abs=1e-5), name
    torch.testing.assert_close(found.prototypes, golden["prototypes"], **TOLERANCE)
    assert torch.equal(found.present, golden["prototype_present"])
    torch.testing.assert_close(found.pooled[table[0] != EMPTY], golden["pooled_patches"], **TOLERANCE)
    torch.testing.assert_close(tokens.grad, golden["grad_token_vectors"], **TOLERANCE)
    torch.testing.assert_close(pooled.grad, golden["grad_pooled"], **TOLERANCE)


def test_table_refuses_what_it_cannot_hold():
    caption = EncodedCaption((1, 2, 3, 4), ((5, 0, 3), (6, 3, 4)))
    concept, token_index = padded_table([caption], 3, 3)
    assert concept.tolist() == [[5, 6, EMPTY]]
    assert token_index.tolist() == [[[0, 1, 2], [3, EMPTY, EMPTY], [EMPTY] * 3]]
    with pytest.raises(ValueError, match="1 slots"):
        padded_table([caption], 1, 3)
    with pytest.raises(ValueError, match="the table 2"):
        padded_table([caption], 2, 2)


def test_each_caption_decodes_its_image():
    files = [image_bytes(0, (40, 30), "jpeg"), image_bytes(1, (40, 30), "jpeg")]
    images = CaptionImages([files[0], files[1], files[0]], 28, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    captions = [EncodedCaption((7, 8, 9), ((2, 1, 2),)), EncodedCaption((7, 9), ()), EncodedCaption((7, 8, 8, 9), ())]
    (batch,) = padded_batches(images, captions, batch_size=3, length=6, pad_id=0, workers=0)
    assert batch.pixels.shape == (3, 3, 28, 28) and batch.pixels.dtype == torch.float32
    assert not torch.equal(batch.pixels[0], batch.pixels[2])  # another crop of the same file
    assert -2 <= batch.pixels.min() < -1 and 1 < batch.pixels.max() <= 2
    assert batch.input_ids.tolist() == [[7, 8, 9, 0, 0, 0], [7, 9, 0, 0, 0, 0], [7, 8, 8, 9, 0, 0]]
    assert batch.attention_mask.sum(dim=1).tolist() == [3, 2, 4]
    assert batch.concept.tolist() == [[2], [EMPTY], [EMPTY]]


def test_steps_learn():
    model = SimZSS(make_backbone(), make_scratch())
    optim, loss = OptimSettings(lr=1e-3), LossSettings(concept_weight=0.05)
    step = OriginalStep(model, 4, optim, loss, "32-true", torch.device("cpu"))
    captions = [EncodedCaption((100 + i, 200 + i, 300 + i), ((i % 4, 1, 2),)) for i in range(8)]
    pixels = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = PaddedBatch(pixels, *padded_text(captions, 16, 0), *padded_table(captions, 2, 2))
    frozen = model.backbone.fingerprint, F.normalize(model.backbone(pixels).cls, dim=-1)
    losses = [step.step(batch).item() for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(frozen[1], F.normalize(model.backbone(pixels).cls, dim=-1))
