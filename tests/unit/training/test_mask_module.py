"""One step of training with masks against the formulas in float64, point by point, and what a step must leave alone."""

import math
from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simzss.data.benchmark import IGNORE
from simzss.losses.mask import MaskLossConfig
from simzss.models.mask_head.head import HeadConfig, MultiResHead, Round, build_head
from simzss.models.simzss import SimZSS
from simzss.segmentation.protocol import WHOLE_336
from simzss.training import mask_module
from simzss.training.data.masks import MaskBatch
from simzss.training.mask_module import MaskModule
from simzss.training.optim import OptimConfig, build_optimizer
from tests.support.models import make_backbone, make_scratch, shaken

CLASSES, QUERIES, POINTS, SIDE = 6, 5, 16, 128
LOSS = MaskLossConfig(2.0, 5.0, 3.0, no_object=0.1, points=POINTS, oversample=3.0, important=0.75)
HEAD = HeadConfig(
    window=64, scale=2, views="both", gate=True, restore=True, masked=True, depths=(0, 2), width=16, heads=2,
    queries=QUERIES, layers=2, upsample=2, learned_share=0.4, unseen_share=0.8,
)  # fmt: skip
ROUNDS = HEAD.layers + 1


class Loose(MaskModule):
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
def module(frozen) -> Loose:
    torch.manual_seed(4)
    frozen.multires = shaken(build_head(HEAD, frozen.backbone))
    groups = [(f"class {number}",) for number in range(CLASSES)]
    optim = OptimConfig(1e-3, (0.9, 0.999), 1e-8, 0.05, 0.0)
    made = Loose(frozen, groups, LOSS, optim, WHOLE_336, "concept", 0)
    made.logged = {}
    made.words = F.normalize(torch.randn(CLASSES, frozen.backbone.width), dim=1)
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


def said_of(module: Loose, images: torch.Tensor) -> list[Round]:
    head = module.model.multires
    return head(head.look(module.model.backbone, module.model.feature_norm.patches, images))


@pytest.fixture
def same_points(monkeypatch):
    """Every image and every mask is looked at in the same points, whatever is predicted."""
    grid = torch.rand(POINTS, 2, generator=torch.Generator().manual_seed(6))
    monkeypatch.setattr(torch, "rand", lambda rows, *_, device: grid.expand(rows, -1, -1))
    monkeypatch.setattr(mask_module, "uncertain_points", lambda masks, config: grid.expand(len(masks), -1, -1))
    return grid


@pytest.fixture
def says(monkeypatch):
    """Makes the head say given rounds."""

    def say(rounds: list[Round]) -> None:
        monkeypatch.setattr(MultiResHead, "forward", lambda self, levels: rounds)

    return say


# The loss, by loops --------------------------------------------------------------------------------------------------


def value_at(mask: np.ndarray, across: float, down: float) -> float:
    """Bilinear between the centres of cells, the rim beyond them."""
    height, width = mask.shape
    x, y = min(max(across * width - 0.5, 0), width - 1), min(max(down * height - 0.5, 0), height - 1)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    upper = mask[top, left] * (left + 1 - x) + mask[top, right] * (x - left)
    lower = mask[bottom, left] * (left + 1 - x) + mask[bottom, right] * (x - left)
    return upper * (top + 1 - y) + lower * (y - top)


def compared(mask: np.ndarray, labels: np.ndarray, wanted: int, points: np.ndarray) -> tuple[float, float]:
    """Cross-entropy and dice loss of one mask and one class at points."""
    entropy, both, predicted, true, counted = 0.0, 0.0, 0.0, 0.0, 0
    for across, down in points:
        label = labels[int(down * SIDE), int(across * SIDE)]
        if label == IGNORE:
            continue
        logit, inside = value_at(mask, across, down), float(label == wanted)
        chance = 1 / (1 + math.exp(-logit))
        entropy -= inside * math.log(chance) + (1 - inside) * math.log1p(-chance)
        both, predicted, true, counted = both + chance * inside, predicted + chance, true + inside, counted + 1
    return entropy / max(counted, 1), 1 - (2 * both + 1) / (predicted + true + 1)


def cheapest(cost: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of query and object, by query, of least total cost, by trying all."""
    queries, objects = cost.shape
    if queries >= objects:
        tried = [list(zip(chosen, range(objects), strict=True)) for chosen in permutations(range(queries), objects)]
    else:
        tried = [list(zip(range(queries), chosen, strict=True)) for chosen in permutations(range(objects), queries)]
    return sorted(min(tried, key=lambda pairs: sum(cost[pair] for pair in pairs)))


def probabilities_of(vectors: np.ndarray, words: np.ndarray, none: np.ndarray, scale: float) -> np.ndarray:
    """(Q, K + 1)."""
    every = np.concatenate([words, none[None] / np.linalg.norm(none)])
    powers = np.exp(scale * vectors @ every.T)
    return powers / powers.sum(axis=1, keepdims=True)


def loss_by_loops(module: Loose, rounds: list[Round], labels: np.ndarray, draws: Iterator[np.ndarray]) -> dict:
    """The parts of the loss over all rounds, from what the head said and the random points in the order drawn: first
    those of all rounds' assignments."""  # fmt: skip
    head, words = module.model.multires, module.words.double().numpy()
    none = head.no_object.detach().double().numpy()
    scale = min(math.exp(float(head.logit_scale.detach())), 100.0)
    parts = {"class": 0.0, "bce": 0.0, "dice": 0.0}
    for said, points in zip(rounds, [next(draws) for _ in rounds], strict=True):
        pairs, found = [], []
        masks = said.masks.detach().double().numpy()
        for row, own in enumerate(labels):
            chances = probabilities_of(said.vectors[row].detach().double().numpy(), words, none, scale)
            objects = [label for label in range(CLASSES) if (own == label).any()]
            cost = np.zeros((QUERIES, len(objects)))
            for query in range(QUERIES):
                for number, label in enumerate(objects):
                    bce, dice = compared(masks[row, query], own, label, points[row])
                    cost[query, number] = -2.0 * chances[query, label] + 5.0 * bce + 3.0 * dice
            pairs += [(row, query, objects[number]) for query, number in cheapest(cost)]
            found.append(chances)
        told = {(row, query): label for row, query, label in pairs}
        weights = {
            (row, query): 1.0 if (row, query) in told else 0.1
            for row, own in enumerate(labels)
            for query in range(QUERIES)
            if (own != IGNORE).any()
        }
        entropy = sum(-weight * math.log(found[row][query, told.get((row, query), CLASSES)])
                      for (row, query), weight in weights.items())  # fmt: skip
        parts["class"] += 2.0 * entropy / max(sum(weights.values()), 1e-6)
        tried, anywhere = next(draws), next(draws)
        for number, (row, query, label) in enumerate(pairs):
            unsure = sorted(tried[number], key=lambda point: abs(value_at(masks[row, query], *point)))
            bce, dice = compared(masks[row, query], labels[row], label, [*unsure[:12], *anywhere[number]])
            parts["bce"] += 5.0 * bce / len(pairs)
            parts["dice"] += 3.0 * dice / len(pairs)
    return parts


@pytest.mark.parametrize("labels", [(TWO,), (TWO, MANY, NONE, UNCOUNTED), (NONE, UNCOUNTED), (UNCOUNTED,)])
def test_loss_by_loops(module, monkeypatch, labels):
    draws, draw = [], torch.rand

    def noted(*shape, **options):
        draws.append(draw(*shape, **options))
        return draws[-1]

    monkeypatch.setattr(torch, "rand", noted)
    torch.manual_seed(7)
    made = batch(*labels)
    parts = module.losses(made)
    assert len(draws) == 3 * ROUNDS
    numbers = (points.double().numpy() for points in draws)
    expected = loss_by_loops(module, said_of(module, made.images), made.labels.numpy(), numbers)
    assert plain(parts) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert (expected["bce"] > 0) == (labels[0] is TWO) and (expected["class"] > 0) == (labels[0] is not UNCOUNTED)


def test_step_is_the_sum_of_the_parts(module, same_points):
    loss = module.training_step(batch(TWO, NONE, UNCOUNTED, TWO), 0)
    parts = module.losses(batch(TWO, NONE, UNCOUNTED, TWO))
    parts = plain(parts)
    assert loss.item() == pytest.approx(sum(parts.values()), rel=1e-6)
    logged = {"train/loss": loss.item(), "train/empty_crops": 2.0, "crops": 4}
    logged |= {f"train/loss_{name}": value for name, value in parts.items()}
    assert module.logged == pytest.approx(logged, rel=1e-6)
    module.training_step(batch(NONE), 1)
    assert module.empty == 3


# What learns ---------------------------------------------------------------------------------------------------------


def test_only_the_head_learns(module):
    model = module.model
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    everything = dict(model.named_parameters())
    assert learning == {name for name in everything if name.startswith("multires.")}
    kept = {name for name in model.state_dict() if name.startswith("feature_norm.")}
    assert set(module.state_dict()) == {f"model.{name}" for name in learning | kept}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(module.parameters(), 1e-3, (0.9, 0.999), 1e-8, 0.05)
    module.train()
    module.training_step(batch(TWO, MANY), 0).backward()
    assert not [name for name in learning if everything[name].grad is None]  # DDP would wait for it
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= learning and len(changed) > 0.9 * len(learning)
    assert not [name for name, parameter in everything.items() if name not in learning and parameter.grad is not None]


def test_every_round_is_supervised(module, says):
    made = batch(TWO, MANY)
    rounds = said_of(module, made.images)
    leaves = [[part.detach().requires_grad_() for part in (said.vectors, said.masks)] for said in rounds]
    says([Round(vectors, masks, said.seen) for (vectors, masks), said in zip(leaves, rounds, strict=True)])
    loss = module.training_step(made, 0)
    loss.backward()
    assert len(leaves) == ROUNDS
    for vectors, masks in leaves:
        assert (vectors.grad.abs().sum(dim=2) > 0).all()
        touched = masks.grad.flatten(2).abs().sum(dim=2) > 0
        assert touched.sum(dim=1).tolist() == [2, QUERIES]  # as many as there are objects, or queries


# What does not count -------------------------------------------------------------------------------------------------


def test_pixels_that_do_not_count_have_no_influence(module, says, same_points):
    """The lower half of the picture is hidden: whatever masks say there, also to the assignment."""
    made = batch(scene((3, 10, 10, 40, 70), (0, 10, 80, 50, 128), (IGNORE, 64, 0, 128, 128)))
    rounds = said_of(module, made.images)
    expected = plain(module.losses(made))
    assert 0 < ((same_points[:, 1] > 0.5).sum()) < POINTS
    cells = rounds[0].masks.shape[2]
    changed = []
    for number, said in enumerate(rounds):
        masks = said.masks.clone()
        # The first row of cells below the border reaches half a cell above it.
        masks[:, :, cells // 2 + 1 :] = 40 * torch.randn(masks[:, :, cells // 2 + 1 :].shape).sign() * (number + 1)
        changed.append(Round(said.vectors, masks, said.seen))
    says(changed)
    assert plain(module.losses(made)) == pytest.approx(expected, rel=1e-6)
    made.labels[:, 64:] = CLASSES  # when the same pixels count, it matters
    assert module.losses(made)["bce"].item() > 2 * expected["bce"]


def test_a_crop_that_does_not_count_adds_nothing(module, same_points):
    alone, beside = plain(module.losses(batch(TWO))), plain(module.losses(batch(TWO, UNCOUNTED)))
    assert beside == pytest.approx(alone, rel=1e-5)
    loss = module.training_step(batch(UNCOUNTED, UNCOUNTED), 0)
    loss.backward()
    assert loss.item() == 0
    gradients = [parameter.grad for parameter in module.model.multires.parameters()]
    assert not any(gradient.any() for gradient in gradients)  # and all of them are there


def test_a_crop_without_a_class_teaches_only_that(module):
    """All its queries have no object; it weighs little beside one that shows some."""
    made = batch(NONE)
    parts = module.losses(made)
    assert parts["bce"].item() == parts["dice"].item() == 0
    logits = [module.model.multires.class_logits(said.vectors, module.words) for said in said_of(module, made.images)]
    expected = [-logit.double().log_softmax(dim=2)[..., -1].mean() for logit in logits]
    assert parts["class"].item() == pytest.approx(2 * sum(expected).item(), rel=1e-5)
    torch.stack(list(parts.values())).sum().backward()
    head = module.model.multires
    assert head.no_object.grad.any() and not any(p.grad.any() for p in head.pixels.parameters())


@pytest.mark.parametrize(("classes", "shown"), [(6, [0, 1]), (1, [0])])
def test_rehearsal(module, classes, shown):
    module.class_groups = module.class_groups[:classes]
    made = module.rehearsal_batch(3, 128)
    assert made.images.shape == (3, 3, 128, 128) and made.images.dtype == made.labels.dtype == torch.uint8
    assert made.labels.shape == (3, 128, 128)
    assert [labels.unique().tolist() for labels in made.labels] == [shown] * 3
