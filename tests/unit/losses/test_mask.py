"""Losses of masks against loops over masks and points in Python's own floats, and two processes against one."""

import math
from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from simzss.errors import InputError
from simzss.losses.mask import (
    MaskLossConfig,
    assignment_cost,
    class_loss,
    labels_at,
    look_up,
    mask_losses,
    objects_of,
    uncertain_points,
)
from tests.support.loops import sampled

WORLD, QUERIES, CLASSES, POINTS, WIDTH = 2, 3, 4, 9, 5
STEP = 1e-5  # of finite differences
CASES = {  # for each rank: number of masks, and which of its two images count
    "as many on both": ((2, (True, True)), (2, (True, True))),
    "more on the first": ((3, (True, True)), (1, (False, True))),
    "second rank has none": ((3, (True, False)), (0, (False, False))),
    "first rank has none": ((0, (False, False)), (2, (True, False))),
    "no rank has any": ((0, (False, False)), (0, (False, False))),
}


def config(**changes) -> MaskLossConfig:
    options = {"class_weight": 2.0, "bce_weight": 5.0, "dice_weight": 3.0, "no_object": 0.1, "points": 8}
    return MaskLossConfig(**options | {"oversample": 3.0, "important": 0.75} | changes)


def noise(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(*shape: int, seed: int = 0, chance: float = 0.6) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < chance


def softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def sigmoid(value: float) -> float:
    return math.exp(-softplus(-value))


def bce_of(logits: list[float], inside: list[bool], counted: list[bool]) -> float:
    """Mean over the points that count."""
    parts = [softplus(-x if t else x) for x, t, c in zip(logits, inside, counted, strict=True) if c]
    return sum(parts) / len(parts) if parts else 0.0


def dice_of(logits: list[float], inside: list[bool], counted: list[bool]) -> float:
    points = [(sigmoid(x), float(t)) for x, t, c in zip(logits, inside, counted, strict=True) if c]
    both, either = sum(a * b for a, b in points), sum(a + b for a, b in points)
    return 1 - (2 * both + 1) / (either + 1)


def chances(logits: list[float]) -> list[float]:
    powers = [math.exp(x - max(logits)) for x in logits]
    return [power / sum(powers) for power in powers]


def cross_entropy(logits: list, targets: list, counted: list, no_object: float) -> float:
    """Of nested lists (B, Q, K + 1)."""
    total = weights = 0.0
    for image, labels, counts in zip(logits, targets, counted, strict=True):
        for row, label in zip(image, labels, strict=True):
            weight = (no_object if label == len(row) - 1 else 1.0) if counts else 0.0
            total -= weight * math.log(chances(row)[label])
            weights += weight
    return total / weights if weights else 0.0


def differences(function, values: torch.Tensor) -> torch.Tensor:
    """Gradient of a function of nested lists."""
    found = torch.zeros_like(values)
    for place in product(*(range(length) for length in values.shape)):
        sides = []
        for sign in (1, -1):
            moved = values.clone()
            moved[place] += sign * STEP
            sides.append(function(moved.tolist()))
        found[place] = (sides[0] - sides[1]) / (2 * STEP)
    return found


def gradient(loss: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, leaf, retain_graph=True)[0]


def close(found: torch.Tensor, expected, tolerance: float = 2e-6) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(4, 7), (5, 3), (1, 6), (1, 1)])
def test_look_up_is_bilinear_between_centres(shape):
    maps = noise(3, *shape)
    points = torch.rand(3, 11, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points[:, :4] = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0]])
    found = look_up(maps, points)
    assert found.shape == (3, 11)
    for n, p in product(range(3), range(11)):
        across, down = points[n, p].tolist()
        expected = sampled(maps[n][None], down * shape[0] - 0.5, across * shape[1] - 0.5)
        assert float(found[n, p]) == pytest.approx(float(expected), abs=1e-12)


def test_several_maps_are_looked_up_in_the_same_points():
    maps = noise(2, 3, 4, 5)
    points = torch.rand(2, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = look_up(maps, points)
    assert found.shape == (2, 3, 6)
    for query in range(3):
        close(found[:, query], look_up(maps[:, query], points))


def test_gradient_of_look_up():
    points = torch.rand(2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda maps: look_up(maps, points), noise(2, 3, 4).requires_grad_())


def test_look_up_without_a_map():
    maps = torch.zeros(0, 3, 4, requires_grad=True)
    found = look_up(maps, torch.zeros(0, 6, 2))
    assert found.shape == (0, 6)
    assert gradient(found.sum(), maps).shape == maps.shape


def test_labels_are_those_of_the_pixel():
    labels = torch.arange(2 * 3 * 5).view(2, 3, 5)
    rows = torch.tensor([1, 0, 1])
    points = torch.rand(3, 40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    points[:, :4] = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0]])
    found = labels_at(labels, rows, points)
    assert found.shape == (3, 40)
    for n, p in product(range(3), range(40)):
        across, down = points[n, p].tolist()
        expected = labels[rows[n], min(2, math.floor(3 * down)), min(4, math.floor(5 * across))]
        assert found[n, p] == expected
    assert found[0, :4].tolist() == [15, 29, 25, 19]


def test_labels_without_a_point():
    labels = torch.zeros(2, 3, 5, dtype=torch.long)
    assert labels_at(labels, torch.zeros(0, dtype=torch.long), torch.zeros(0, 4, 2)).shape == (0, 4)


def test_objects_of_images():
    labels = torch.tensor([[[7, 255], [9, 3]], [[255, 9], [9, 9]], [[0, 0], [0, 255]], [[254, 3], [254, 3]]])
    found = objects_of(labels.to(torch.uint8), ignore=255, none=9)
    assert [own.tolist() for own in found] == [[3, 7], [], [0], [3, 254]]
    assert {own.dtype for own in found} == {torch.int64}


@pytest.mark.parametrize("share", [0.6, 1.0, 0.0])
@pytest.mark.parametrize("part", [None, "class_weight", "bce_weight", "dice_weight"])
def test_cost_of_an_assignment(share, part):
    """Whole, and each part by itself; a class that two objects have; points that do not count."""
    names = ("class_weight", "bce_weight", "dice_weight")
    weights = config() if part is None else config(**{name: float(name == part) for name in names})
    logits, masks = noise(QUERIES, CLASSES + 1), noise(QUERIES, POINTS, seed=1, scale=5.0)
    classes, targets, counted = torch.tensor([2, 0, 2, 3]), drawn(4, POINTS), drawn(POINTS, seed=1, chance=share)
    found = assignment_cost(logits, masks, classes, targets, counted, weights)
    assert found.shape == (QUERIES, 4) and found.dtype == torch.float32
    for q, m in product(range(QUERIES), range(4)):
        points = masks[q].tolist(), targets[m].tolist(), counted.tolist()
        expected = weights.bce_weight * bce_of(*points) + weights.dice_weight * dice_of(*points)
        expected -= weights.class_weight * chances(logits[q].tolist())[int(classes[m])]
        assert float(found[q, m]) == pytest.approx(expected, abs=1e-5)


def test_costs_of_several_images():
    """Each as by itself; beside a class that only fills a row."""
    logits, masks = noise(3, QUERIES, CLASSES + 1), noise(3, QUERIES, POINTS, seed=1)
    classes, targets, counted = torch.tensor([[2, 0], [1, 3], [4, 0]]), drawn(3, 2, POINTS), drawn(3, POINTS, seed=1)
    found = assignment_cost(logits, masks, classes, targets, counted, config())
    for row in range(3):
        alone = assignment_cost(logits[row], masks[row], classes[row], targets[row], counted[row], config())
        torch.testing.assert_close(found[row], alone, rtol=1e-5, atol=1e-6)
    assert assignment_cost(logits, masks, classes[:, :0], targets[:, :0], counted, config()).shape == (3, QUERIES, 0)


def test_cost_without_an_object():
    none = torch.zeros(0, dtype=torch.long)
    found = assignment_cost(noise(3, 5), noise(3, 9), none, torch.zeros(0, 9), torch.ones(9), config())
    assert found.shape == (3, 0)


@pytest.mark.parametrize("no_object", [0.1, 1.0, 0.0])
@pytest.mark.parametrize("counted", [(True, True, True), (True, False, True), (False, False, False)])
def test_class_loss_and_its_gradient(no_object, counted):
    targets = torch.tensor([[0, CLASSES, 3], [CLASSES, 1, CLASSES], [CLASSES, CLASSES, 2]])
    logits = noise(3, QUERIES, CLASSES + 1).requires_grad_()
    loss = class_loss(logits, targets, torch.tensor(counted), no_object)
    rest = targets.tolist(), counted, no_object
    close(loss, cross_entropy(logits.tolist(), *rest))
    close(gradient(loss, logits), differences(lambda values: cross_entropy(values, *rest), logits.detach()))


def test_queries_that_all_have_no_object_do_not_divide_by_zero():
    logits = noise(1, QUERIES, CLASSES + 1).requires_grad_()
    loss = class_loss(logits, torch.full((1, QUERIES), CLASSES), torch.tensor([True]), 0.0)
    assert loss.item() == 0 and not gradient(loss, logits).any()


@pytest.mark.parametrize("scale", [2.0, 60.0])
@pytest.mark.parametrize("share", [0.6, 1.0, 0.0])
def test_mask_losses_and_their_gradients(share, scale):
    """The last mask has no point that counts; of some all points lie inside or none."""
    masks = noise(5, POINTS, scale=scale).requires_grad_()
    targets, counted = drawn(5, POINTS), drawn(5, POINTS, seed=1, chance=share)
    targets[1], targets[2], counted[4] = True, False, False
    for found, one in zip(mask_losses(masks, targets, counted), (bce_of, dice_of), strict=True):

        def mean(values, one=one):
            rows = zip(values, targets.tolist(), counted.tolist(), strict=True)
            return sum(one(*row) for row in rows) / 5

        close(found, mean(masks.tolist()), 1e-6 * scale)
        close(gradient(found, masks), differences(mean, masks.detach()))


def test_what_a_point_that_does_not_count_says_is_nothing():
    masks, targets, counted = noise(4, POINTS), drawn(4, POINTS), drawn(4, POINTS, seed=1)
    assert not counted.all()
    changed = masks.masked_fill(~counted, 99.0), targets ^ ~counted
    for before, after in zip(mask_losses(masks, targets, counted), mask_losses(*changed, counted), strict=True):
        assert torch.equal(before, after)
    ours = assignment_cost(noise(4, 5), masks, torch.tensor([1]), targets[:1], counted[0], config())
    theirs = masks.masked_fill(~counted[0], 99.0), torch.tensor([1]), (targets[:1] ^ ~counted[:1]), counted[0]
    assert torch.equal(ours, assignment_cost(noise(4, 5), *theirs, config()))


def test_no_mask_has_losses_and_gradients_of_zero():
    weight = noise(WIDTH, POINTS).requires_grad_()
    masks = torch.zeros(0, WIDTH, dtype=torch.float64) @ weight
    for loss in mask_losses(masks, torch.zeros(0, POINTS), torch.zeros(0, POINTS)):
        assert loss.item() == 0
        assert torch.equal(gradient(loss, weight), torch.zeros_like(weight))


def test_perfect_masks_cost_nothing():
    targets = drawn(3, POINTS)
    for loss in mask_losses(torch.where(targets, 50.0, -50.0), targets, torch.ones(3, POINTS)):
        assert float(loss) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "tried", "important"),
    [
        ({}, 24, 6),
        ({"important": 0.0}, None, 0),
        ({"important": 1.0, "oversample": 1.0}, 8, 8),
        ({"points": 1, "important": 1.0, "oversample": 9.0}, 9, 1),
        ({"points": 10, "important": 0.3, "oversample": 1.5}, 15, 3),
    ],
)
@pytest.mark.parametrize("count", [3, 0])
def test_uncertain_points_are_those_nearest_to_zero(changes, tried, important, count, monkeypatch):
    rand, draws = torch.rand, []
    monkeypatch.setattr(torch, "rand", lambda *a, **k: draws.append(rand(*a, **k)) or draws[-1])
    torch.manual_seed(0)
    maps, options = noise(count, 4, 6), config(**changes)
    points = uncertain_points(maps, options)
    assert points.shape == (count, options.points, 2)
    if important:
        assert draws[0].shape[1] == tried
    for n in range(count):
        anyhow = draws[0][n].tolist()
        sizes = [abs(float(sampled(maps[n][None], 4 * down - 0.5, 6 * across - 0.5))) for across, down in anyhow]
        nearest = sorted(range(len(anyhow)), key=sizes.__getitem__)[:important]
        assert sorted(points[n, :important].tolist()) == sorted(anyhow[i] for i in nearest)
        rest = points[n, important:]
        assert not set(map(tuple, rest.tolist())) & set(map(tuple, anyhow))
        assert ((rest >= 0) & (rest <= 1)).all()


def test_uncertain_points_lie_along_the_border_and_the_rest_anywhere():
    ramp = (torch.arange(64) - 31.5).expand(2, 64, 64)  # zero halfway across
    torch.manual_seed(0)
    points = uncertain_points(ramp.to(torch.bfloat16), config(points=4000, important=0.5))
    distance = (points[..., 0] - 0.5).abs()
    assert distance[:, :2000].max() < 0.1  # the nearest sixth of 12000
    assert distance[:, 2000:].mean() == pytest.approx(0.25, abs=0.01)
    assert points[..., 1].mean() == pytest.approx(0.5, abs=0.02)
    assert points[..., 1].std() == pytest.approx(math.sqrt(1 / 12), abs=0.01)


def test_uncertain_points_depend_on_the_seed_and_have_no_gradient():
    maps = noise(2, 4, 6).requires_grad_()

    def points(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return uncertain_points(maps, config())

    assert torch.equal(points(1), points(1)) and not torch.equal(points(1), points(2))
    assert not points(1).requires_grad
    assert not torch.equal(points(1)[0], points(1)[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(("class_weight", "bce_weight", "dice_weight", "no_object"), (-0.1, math.nan, math.inf)),
        *product(("points",), (0, -1)),
        *product(("oversample",), (0.9, math.nan, math.inf)),
        *product(("important",), (-0.1, 1.1, math.nan)),
    ],
)
def test_bad_values(name, value):
    with pytest.raises(InputError) as caught:
        config(**{name: value})
    assert str(caught.value).startswith(f"mask_loss.{name}={value} must be ") and "\n" not in str(caught.value)


def test_values_at_the_rim_are_fine():
    config(class_weight=0.0, bce_weight=0.0, dice_weight=0.0, no_object=0.0, points=1, oversample=1.0, important=0.0)
    config(important=1.0)


def step(masks: slice, images: slice, counted: tuple[bool, ...]) -> dict[str, torch.Tensor]:
    """Losses and gradients of some rows of the joint batch; two weights stand for the head."""
    weight = noise(WIDTH, POINTS, seed=1).requires_grad_()
    words = noise(WIDTH, CLASSES + 1, seed=2).requires_grad_()
    said = noise(8, WIDTH, scale=1.0)[masks] @ weight
    bce, dice = mask_losses(said, drawn(8, POINTS)[masks], drawn(8, POINTS, seed=1)[masks])
    logits = noise(4, QUERIES, WIDTH, seed=3, scale=1.0)[images] @ words
    targets = torch.tensor([[0, 4, 4], [4, 4, 4], [1, 2, 3], [4, 0, 4]])[images]
    losses = {"bce": bce, "dice": dice, "class": class_loss(logits, targets, torch.tensor(counted), 0.1)}
    found = {name: loss.detach().clone() for name, loss in losses.items()}
    for name, loss in losses.items():
        found[f"{name} gradient"] = gradient(loss, words if name == "class" else weight)
    return found


def rows_of(case: str, rank: int) -> tuple[slice, slice, tuple[bool, ...]]:
    start = sum(count for count, _ in CASES[case][:rank])
    count, counted = CASES[case][rank]
    return slice(start, start + count), slice(2 * rank, 2 * rank + 2), counted


def worker(rank, address, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=WORLD)
    found = {}
    for case in CASES:
        found[case] = step(*rows_of(case, rank))
        for value in found[case].values():  # as DDP: average over ranks
            dist.all_reduce(value)
            value /= WORLD
    if rank == 0:
        torch.save(found, path)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_process_results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, (folder / "rendezvous", folder / "results.pt"), nprocs=WORLD)
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, two_process_results):
    found = two_process_results[case]
    masks, counted = sum(count for count, _ in CASES[case]), sum((images for _, images in CASES[case]), ())
    expected = step(slice(0, masks), slice(0, 4), counted)
    assert any(value.any() for value in expected.values()) == (masks > 0)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)
