"""One whole step, values and gradients, against the plain computation: every caption padded to the full context and
masked, nothing in chunks, no sort, losses written out anew. In float32."""

import random

import pytest
import torch
import torch.nn.functional as F

from simzss.features.quantise import pack
from simzss.features.stored import StoredFeatures
from simzss.losses import contrastive as contrastive_module
from simzss.losses.settings import LossSettings
from simzss.models.features import ImageFeatures
from simzss.models.simzss import SimZSS
from simzss.training.data.batch import collate
from simzss.training.data.encoding import EncodedCaption
from simzss.training.data.images import CachedFeatures
from simzss.training.module import SimZSSModule
from simzss.training.settings import OptimSettings
from tests.support.models import make_backbone, make_bert, make_scratch, save_bert, shaken

CAPTIONS, CONCEPTS, PATCHES, WIDTH, CONTEXT = 40, 9, 6, 64, 16
LOSS = LossSettings(concept_weight=0.5)


def captions(vocabulary: int) -> list[EncodedCaption]:
    """Make captions of 3 to 16 tokens with up to three concepts."""
    rng = random.Random(0)
    made = []
    for _ in range(CAPTIONS):
        length = rng.randint(3, CONTEXT)
        ids = tuple(rng.randrange(vocabulary) for _ in range(length))
        starts = [rng.randrange(1, length) for _ in range(rng.randint(0, 3))]
        made.append(EncodedCaption(ids, tuple((rng.randrange(CONCEPTS), s, min(length, s + 2)) for s in starts)))
    return made


def features() -> ImageFeatures:
    generator = torch.Generator().manual_seed(1)
    unit = [F.normalize(torch.randn(CAPTIONS, *n, WIDTH, generator=generator), dim=-1) for n in ((), (PATCHES,))]
    return ImageFeatures(unit[0], unit[1], (2, 3))


@pytest.fixture(params=["scratch", "bert"])
def model(request, tmp_path) -> SimZSS:
    tower = make_scratch() if request.param == "scratch" else make_bert(save_bert(tmp_path), context_length=CONTEXT)
    return shaken(SimZSS(make_backbone(), tower), amount=0.05).eval()


class QuietModule(SimZSSModule):
    """A module outside of a run."""

    def _log(self, *_):
        pass


def step(model: SimZSS, image: StoredFeatures, micro_batch: int | None = None):
    """Return loss and gradients of the module of a run."""
    made = captions(model.text_encoder.body.config.vocab_size)
    batch = collate(made, 0, CachedFeatures(image, normalised=True), max_captions=micro_batch)
    module = QuietModule(model, CONCEPTS, LOSS, OptimSettings(), 0, micro_batch)
    return differentiate(model, module.training_step(batch, 0))


def plain(model: SimZSS, image: ImageFeatures):
    """Return the same by the formulas of the paper, one caption and one concept at a time."""
    made = captions(model.text_encoder.body.config.vocab_size)
    ids = torch.tensor([list(caption.input_ids) + [0] * (CONTEXT - len(caption.input_ids)) for caption in made])
    lengths = torch.tensor([len(caption.input_ids) for caption in made])
    mask = (torch.arange(CONTEXT) < lengths[:, None]).long()
    tower = model.text_encoder
    tokens = tower.projection(tower.body(input_ids=ids, attention_mask=mask).last_hidden_state)
    ends = [tokens[i, n - 1] if tower.pooling == "eot" else tokens[i, :n].mean(dim=0) for i, n in enumerate(lengths)]
    logits = model.logit_scale.exp() * image.cls @ F.normalize(torch.stack(ends), dim=-1).T
    own = torch.arange(CAPTIONS)
    contrastive = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    vectors: dict[int, list[torch.Tensor]] = {}
    for row, caption in enumerate(made):
        for concept, start, end in caption.concepts:
            unit = [F.normalize(tokens[row, place], dim=0) for place in range(start, end)]
            vectors.setdefault(concept, []).extend(unit)
    present = sorted(vectors)
    prototypes = torch.stack([F.normalize(torch.stack(vectors[concept]).sum(dim=0), dim=0) for concept in present])
    losses = []
    for row, caption in enumerate(made):
        for concept, _, _ in caption.concepts:
            query = prototypes[present.index(concept)]
            weights = torch.softmax(image.patches[row] @ query / LOSS.pool_temperature, dim=0)
            pooled = F.normalize(weights @ image.patches[row], dim=0)
            label = torch.tensor(present.index(concept))
            losses.append(F.cross_entropy(prototypes @ pooled / LOSS.concept_temperature, label))
    return differentiate(model, contrastive + LOSS.concept_weight * torch.stack(losses).mean())


def differentiate(model: SimZSS, loss: torch.Tensor):
    learning = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return loss.detach(), dict(zip(learning, torch.autograd.grad(loss, learning.values()), strict=True))


def stored(storage: str) -> StoredFeatures:
    packed = pack(features(), storage)
    return StoredFeatures(packed["cls"], packed["patches"], packed.get("scale"), (2, 3))


@pytest.mark.parametrize("micro_batch", [None, 1, 7])
def test_step_equals_the_plain_computation(model, micro_batch, monkeypatch):
    """Blocks of like length; with a micro-batch the text tower in chunks, and the rows of the logits too."""
    monkeypatch.setattr("simzss.training.data.buckets._BLOCK_COST", 8)  # several blocks of so few captions
    if micro_batch is not None:
        whole = contrastive_module.contrastive_loss
        monkeypatch.setattr("simzss.training.module.contrastive_loss", lambda *given: whole(*given, rows=micro_batch))
    loss, gradients = step(model, stored("float32"), micro_batch)
    expected, expected_gradients = plain(model, features())
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("storage", "tolerance"), [("bfloat16", 2e-3), ("int8", 2e-3)])
def test_tolerance_of_stored_features(model, storage, tolerance):
    """Features of 8 bits of mantissa, or of 127 levels, move the loss by so much of its value."""
    loss, _ = step(model, stored(storage))
    expected, _ = plain(model, features())
    assert loss != expected
    assert abs(float(loss / expected) - 1) < tolerance
