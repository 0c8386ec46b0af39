"""Losses of masks against loops, their gradients against differences, two processes against one."""

import pytest
import torch

from simzss.losses.mask import class_loss, mask_losses, objects_of
from tests.unit.losses.loops import averaged_over_ranks, bce_of, cross_entropy, dice_of, differences, drawn, noise

QUERIES, CLASSES, POINTS, WIDTH = 3, 4, 9, 5
CASES = {  # for each rank: number of masks, and which of its two images count
    "as many on both": ((2, (True, True)), (2, (True, True))),
    "more on the first": ((3, (True, True)), (1, (False, True))),
    "second rank has none": ((3, (True, False)), (0, (False, False))),
    "first rank has none": ((0, (False, False)), (2, (True, False))),
    "no rank has any": ((0, (False, False)), (0, (False, False))),
}


def gradient(loss: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, leaf, retain_graph=True)[0]


def close(found: torch.Tensor, expected, tolerance: float = 2e-6) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_objects_of_images():
    labels = torch.tensor([[[7, 255], [9, 3]], [[255, 9], [9, 9]], [[0, 0], [0, 255]], [[254, 3], [254, 3]]])
    found = objects_of(labels.to(torch.uint8), ignore=255, none=9)
    assert [own.tolist() for own in found] == [[3, 7], [], [0], [3, 254]]
    assert {own.dtype for own in found} == {torch.int64}


@pytest.mark.parametrize("eos_coef", [0.1, 1.0, 0.0])
@pytest.mark.parametrize("counted", [(True, True, True), (True, False, True), (False, True, False), (False,) * 3])
def test_class_loss_and_its_gradient(eos_coef, counted):
    """Of the second image all queries have no object."""
    targets = torch.tensor([[0, CLASSES, 3], [CLASSES, CLASSES, CLASSES], [CLASSES, CLASSES, 2]])
    logits = noise(3, QUERIES, CLASSES + 1, scale=2).requires_grad_()
    loss = class_loss(logits, targets, torch.tensor(counted), eos_coef)
    rest = targets.tolist(), counted, eos_coef
    close(loss, cross_entropy(logits.tolist(), *rest))
    close(gradient(loss, logits), differences(lambda values: cross_entropy(values, *rest), logits.detach()))


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


def step(masks: slice, images: slice, counted: tuple[bool, ...]) -> dict[str, torch.Tensor]:
    """Losses and gradients of some rows of the joint batch; two weights stand for the head."""
    weight = noise(WIDTH, POINTS, seed=1, scale=2).requires_grad_()
    text = noise(WIDTH, CLASSES + 1, seed=2, scale=2).requires_grad_()
    predicted = noise(8, WIDTH)[masks] @ weight
    bce, dice = mask_losses(predicted, drawn(8, POINTS)[masks], drawn(8, POINTS, seed=1)[masks])
    logits = noise(4, QUERIES, WIDTH, seed=3)[images] @ text
    targets = torch.tensor([[0, 4, 4], [4, 4, 4], [1, 2, 3], [4, 0, 4]])[images]
    losses = {"bce": bce, "dice": dice, "class": class_loss(logits, targets, torch.tensor(counted), 0.1)}
    found = {name: loss.detach().clone() for name, loss in losses.items()}
    return found | {f"{name} gradient": gradient(loss, text if name == "class" else weight)
                    for name, loss in losses.items()}  # fmt: skip


def steps_of(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for case, ranks in CASES.items():
        start, (count, counted) = sum(before for before, _ in ranks[:rank]), ranks[rank]
        found[case] = step(slice(start, start + count), slice(2 * rank, 2 * rank + 2), counted)
    return found


@pytest.fixture(scope="module")
def two_process_results(tmp_path_factory):
    return averaged_over_ranks(steps_of, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, two_process_results):
    (first, first_counted), (second, second_counted) = CASES[case]
    expected = step(slice(0, first + second), slice(0, 4), first_counted + second_counted)
    assert any(value.any() for value in expected.values()) == (first + second > 0)
    assert list(two_process_results[case]) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(two_process_results[case][name], value, rtol=1e-6, atol=1e-6)
