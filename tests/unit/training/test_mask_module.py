"""One step of training with masks against the formulas in float64, point by point, and what a step must leave alone."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simzss.data.benchmark import IGNORE
from simzss.losses.settings import MaskLossSettings
from simzss.models.mask_head.head import DecoderOutput, build_mask_head
from simzss.models.settings import MaskHeadSettings
from simzss.models.simzss import SimZSS
from simzss.segmentation.settings import Protocol
from simzss.training.data.masks import MaskBatch
from simzss.training.mask_module import MaskModule
from simzss.training.settings import OptimSettings
from tests.support.loops import sampled
from tests.support.models import make_backbone, make_scratch, shaken
from tests.unit.losses.loops import bce_of, cheapest, dice_of, softmax

CLASSES, QUERIES, POINTS, SIDE, LAYERS = 6, 5, 16, 128, 3
LOSS = MaskLossSettings(class_weight=2, bce_weight=5, dice_weight=3, num_points=POINTS)
HEAD = MaskHeadSettings(window=64, depths=(0, 2), width=16, heads=2, queries=QUERIES, layers=LAYERS - 1, upsample=2)


class Unlogged(MaskModule):
    """A module outside of a run, which keeps what it would log."""

    def log(self, name, value, **_):
        self.logged[name] = torch.as_tensor(value).item()

    def log_dict(self, values, **_):
        for name, value in values.items():
            self.log(name, value)

    def log_rate(self, batch_size):
        self.logged["crops"] = batch_size


@pytest.fixture(scope="module")
def frozen() -> SimZSS:
    """What no step may change."""
    model = SimZSS(make_backbone(features="self"), make_scratch())
    shaken(model.backbone.model)
    return model


@pytest.fixture
def module(frozen) -> Unlogged:
    torch.manual_seed(4)
    frozen.mask_head = shaken(build_mask_head(HEAD, frozen.backbone))
    groups = [(f"class {number}",) for number in range(CLASSES)]
    made = Unlogged(frozen, groups, LOSS, OptimSettings(), Protocol(), 0)
    made.logged = {}
    made.class_vectors = F.normalize(torch.randn(CLASSES, frozen.backbone.width), dim=1)
    return made


def scene(*boxes: tuple[int, int, int, int, int], rest: int = CLASSES) -> torch.Tensor:
    """Labels (SIDE, SIDE): boxes of (label, top, left, bottom, right) on `rest`."""
    labels = torch.full((SIDE, SIDE), rest, dtype=torch.uint8)
    for label, top, left, bottom, right in boxes:
        labels[top:bottom, left:right] = label
    return labels


TWO = scene((3, 10, 10, 60, 70), (0, 70, 40, 120, 128), (IGNORE, 0, 0, 128, 20))
MANY = scene(*((label, 20 * label, 0, 20 * label + 20, 128) for label in range(6)), rest=IGNORE)  # more than queries
NONE = scene((IGNORE, 0, 0, 30, 128))
UNCOUNTED = scene(rest=IGNORE)


def batch(*labels: torch.Tensor) -> MaskBatch:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(256, (len(labels), 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return MaskBatch(images, torch.stack(labels))


def plain(parts: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in parts.items()}


def compared(mask: torch.Tensor, labels: torch.Tensor, wanted: int, points: torch.Tensor) -> tuple[float, float]:
    """Cross-entropy and dice loss of one mask and one class at points."""
    found = [int(labels[int(down * SIDE), int(across * SIDE)]) for across, down in points.tolist()]
    values = [value_at(mask, point) for point in points.tolist()]
    rows = values, [label == wanted for label in found], [label != IGNORE for label in found]
    return bce_of(*rows), dice_of(*rows)


def value_at(mask: torch.Tensor, point: list[float]) -> float:
    return float(sampled(mask[None], point[1] * mask.shape[0] - 0.5, point[0] * mask.shape[1] - 0.5))


def draws(labels: torch.Tensor) -> Iterator[torch.Tensor]:
    """The random points of a step: those of the matching of all layers, then two of each layer's losses."""
    matched = sum(min(QUERIES, sum(int(label) < CLASSES for label in own.unique())) for own in labels)
    for _ in range(LAYERS):
        yield torch.rand(len(labels), POINTS, 2)
    for _ in range(LAYERS):
        yield torch.rand(matched, 3 * POINTS, 2)
        yield torch.rand(matched, POINTS // 4, 2)


def loss_by_loops(module: Unlogged, outputs: list[DecoderOutput], labels: torch.Tensor) -> dict[str, float]:
    """The parts of the loss over all layers, from what the head predicted."""
    head, points = module.head, draws(labels)
    none = F.normalize(head.no_object.detach().double(), dim=0)
    every = torch.stack([*module.class_vectors.double(), none]).numpy()
    scale = min(math.exp(float(head.logit_scale.detach())), 100.0)
    parts = {"class": 0.0, "bce": 0.0, "dice": 0.0}
    for output, at in zip(outputs, [next(points) for _ in outputs], strict=True):
        pairs, chances, masks = {}, [], output.masks.detach().double()
        for image, own in enumerate(labels):
            logits = scale * output.embeddings[image].detach().double().numpy() @ every.T
            chances.append([softmax(row) for row in logits.tolist()])
            objects = [label for label in range(CLASSES) if (own == label).any()]
            cost = torch.zeros(QUERIES, len(objects))
            for query, number in np.ndindex(*cost.shape):
                bce, dice = compared(masks[image, query], own, objects[number], at[image])
                cost[query, number] = 5 * bce + 3 * dice - 2 * chances[image][query][objects[number]]
            pairs |= {(image, query): objects[number] for query, number in cheapest(cost)}
        weights = {key: 1.0 if key in pairs else 0.1 for key in np.ndindex(len(labels), QUERIES)
                   if (labels[key[0]] != IGNORE).any()}  # fmt: skip
        entropy = {key: -math.log(chances[key[0]][key[1]][pairs.get(key, CLASSES)]) for key in weights}
        parts["class"] += 2 * sum(weights[key] * entropy[key] for key in weights) / max(sum(weights.values()), 1e-6)
        candidates, anywhere = next(points), next(points)
        for number, ((image, query), label) in enumerate(pairs.items()):
            mask = masks[image, query]
            unsure = sorted(candidates[number].tolist(), key=lambda point, mask=mask: abs(value_at(mask, point)))
            chosen = torch.cat([torch.tensor(unsure[: POINTS * 3 // 4]), anywhere[number]])
            bce, dice = compared(mask, labels[image], label, chosen)
            parts["bce"] += 5 * bce / len(pairs)
            parts["dice"] += 3 * dice / len(pairs)
    return parts


@pytest.mark.parametrize("labels", [(TWO,), (TWO, MANY, NONE, UNCOUNTED), (NONE, UNCOUNTED), (UNCOUNTED,)])
def test_a_step_by_loops(module, labels):
    """The loss is the sum of its parts; every layer's outputs have their share of it."""
    made, outputs = batch(*labels), []
    hook = module.head.register_forward_hook(lambda head, inputs, found: outputs.extend(found))
    torch.manual_seed(7)
    loss = module.training_step(made, 0)
    hook.remove()
    torch.manual_seed(7)
    expected = loss_by_loops(module, outputs, made.labels)
    logged = {f"train/loss_{name}": value for name, value in expected.items()} | {"train/loss": sum(expected.values())}
    logged |= {"train/empty_crops": sum(not (own < CLASSES).any() for own in labels), "crops": len(labels)}
    assert module.logged == pytest.approx(logged, rel=1e-5, abs=1e-6)
    assert loss.item() == module.logged["train/loss"] and module.background_crops == logged["train/empty_crops"]
    assert (expected["bce"] > 0) == (labels[0] is TWO) and (expected["class"] > 0) == (labels[0] is not UNCOUNTED)

    leaves = [part for output in outputs for part in (output.embeddings, output.masks)]
    gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
    for embeddings, masks in zip(gradients[::2], gradients[1::2], strict=True):
        touched = (masks.flatten(2).abs().sum(dim=2) > 0).sum(dim=1).tolist()
        assert touched == [min(QUERIES, sum(int(label) < CLASSES for label in own.unique())) for own in labels]
        counts = [[bool((own != IGNORE).any())] * QUERIES for own in labels]
        assert (embeddings.abs().sum(dim=2) > 0).tolist() == counts
    parameters = torch.autograd.grad(loss, list(module.head.parameters()))  # all are there: DDP would wait for them
    assert any(gradient.any() for gradient in parameters) == (labels[0] is not UNCOUNTED)


def test_only_the_head_learns(module):
    model = module.model
    everything = dict(model.named_parameters())
    learning = {name for name, parameter in everything.items() if parameter.requires_grad}
    assert learning == {name for name in everything if name.startswith("mask_head.")}
    kept = {name for name in model.state_dict() if name.startswith("feature_norm.")}
    assert set(module.state_dict()) == {f"model.{name}" for name in learning | kept}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    module.train()
    module.training_step(batch(TWO, MANY), 0).backward()
    torch.optim.AdamW([everything[name] for name in sorted(learning)], lr=1e-3).step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= learning and len(changed) > 0.9 * len(learning)


def test_checkpoint_of_version_0_1(module):
    checkpoint = {"state_dict": {name.replace("mask_head", "multires"): v for name, v in module.state_dict().items()}}
    module.on_load_checkpoint(checkpoint)
    assert checkpoint["state_dict"].keys() == module.state_dict().keys()


@pytest.mark.parametrize(("classes", "shown"), [(6, [0, 1]), (1, [0])])
def test_synthetic_batch(module, classes, shown):
    module.class_groups = module.class_groups[:classes]
    made = module.synthetic_batch(3, SIDE)
    assert made.images.shape == (3, 3, SIDE, SIDE) and made.images.dtype == made.labels.dtype == torch.uint8
    assert [labels.unique().tolist() for labels in made.labels] == [shown] * 3
