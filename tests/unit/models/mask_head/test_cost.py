import pytest
import torch
from torch import nn

from simzss.models.mask_head.cost import Cost, LiveBytes, measure_cost

# Bytes that live ------------------------------------------------------------------------------------------------------


def test_tensors_count_as_long_as_they_live():
    with LiveBytes() as live:
        one = torch.zeros(10)
        assert (live.now, live.peak) == (40, 40)
        two = torch.ones(3, dtype=torch.float64)
        assert (live.now, live.peak) == (64, 64)
        del one
        assert (live.now, live.peak) == (24, 64)
        three = torch.zeros(5, dtype=torch.uint8)
        assert (live.now, live.peak) == (29, 64)
        del two, three
        assert (live.now, live.peak) == (0, 64)


def test_views_are_the_tensor_itself():
    with LiveBytes() as live:
        whole = torch.zeros(4, 6)
        first, turned = whole[1], whole.T
        cells = whole.unflatten(1, (2, 3)).expand(5, 4, 2, 3)
        assert live.now == live.peak == 96
        del whole, turned, cells
        assert live.now == 96
        copy = first.clone()
        assert live.now == 96 + 24
        del first
        assert (live.now, live.peak) == (24, 120)
        del copy
        assert live.now == 0


def test_memory_between_the_cells_counts_too():
    with LiveBytes() as live:
        sparse = torch.empty_strided((2, 3), (30, 10))
        assert live.now == 4 * (30 + 2 * 10 + 1)
        del sparse
        assert live.now == 0


def test_what_was_there_before_does_not_count():
    before = torch.zeros(100)
    with LiveBytes() as live:
        before.add_(1)
        part = before[10:20].view(2, 5)
        assert live.peak == 0
        fresh = part * 2
        assert (live.now, live.peak) == (40, 40)
        fresh.mul_(2)
        torch.add(fresh, 1, out=fresh)
        assert live.peak == 40
        del before, part, fresh
        assert live.now == 0


def test_memory_is_used_again():
    """A new tensor at the place of a freed one counts as new."""
    with LiveBytes() as live:
        for _ in range(50):
            assert torch.zeros(8).sum() == 0
            assert live.now == 0
        kept = [torch.zeros(8) for _ in range(50)]
        assert live.now == 50 * 32
        del kept
    assert live.now == 0


def test_what_backward_needs_is_kept_until_then():
    weight = nn.Parameter(torch.full((6,), 0.5))
    with LiveBytes() as live:
        loss = weight.exp().exp().sum()
        assert (live.now, live.peak) == (2 * 24 + 4, 2 * 24 + 4)
        loss.backward()
        assert live.now == 24 + 4  # the gradient and the loss
    assert weight.grad is not None


def test_nothing_is_counted_afterwards_but_what_is_freed():
    with LiveBytes() as live:
        kept = torch.zeros(10)
    late = torch.zeros(10)
    assert live.now == 40
    del kept, late
    assert live.now == 0


# A step ---------------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A frozen part in bfloat16, a part that learns, and something within it that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(7, 3, dtype=torch.bfloat16).requires_grad_(False)
        self.learning = nn.Module()
        self.learning.weight = nn.Parameter(torch.ones(1000))
        self.learning.unused = nn.Parameter(torch.ones(11))
        self.learning.fixed = nn.Parameter(torch.ones(13), requires_grad=False)

    def loss(self) -> torch.Tensor:
        return (self.learning.weight * torch.rand(1000)).sum()


def test_a_step_by_hand():
    model = Model()
    cost = measure_cost(model, model.learning, model.loss)
    assert cost.trainable == 1000 + 11
    assert cost.frozen == 7 * 3 + 3 + 13
    assert cost.fixed == 2 * (7 * 3 + 3) + 4 * (1000 + 11 + 13) + 2 * 4 * (1000 + 11)
    # Noise that backward needs, beside it first the product and later the gradient; a few numbers more.
    assert 8000 < cost.live < 8050
    assert cost.seconds > 0


@pytest.mark.parametrize("images", [1, 5])
def test_more_images_take_more(images):
    model = Model()
    cost = measure_cost(model, model.learning, lambda: (model.learning.weight * torch.rand(images, 1000)).sum())
    assert 0 < cost.live - (2 * images + 1) * 4000 < 50  # backward sums the gradients of all images


@pytest.mark.parametrize("before", [None, 2.0])
def test_a_measurement_leaves_no_trace(before):
    model = Model()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if before is not None:
        model.learning.weight.grad = torch.full((1000,), before)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    calls = []

    def loss() -> torch.Tensor:
        calls.append(torch.rand(()).item())
        return model.loss()

    measure_cost(model, model.learning, loss)
    assert len(calls) == 1
    assert torch.get_rng_state().equal(state) and torch.rand(()).item() == calls[0]
    gradient = model.learning.weight.grad
    assert gradient is None if before is None else gradient.equal(torch.full((1000,), before))
    assert all(own.grad is None for name, own in model.named_parameters() if name != "learning.weight")
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())
    assert all(own.requires_grad == (name in ("learning.weight", "learning.unused"))
               for name, own in model.named_parameters())  # fmt: skip


def test_a_step_that_fails_leaves_the_random_numbers():
    model = Model()
    torch.manual_seed(5)
    state = torch.get_rng_state()

    def loss() -> torch.Tensor:
        torch.rand(3)
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        measure_cost(model, model.learning, loss)
    assert torch.get_rng_state().equal(state)
    with LiveBytes() as live:
        kept = torch.zeros(2)
    assert live.now == kept.nbytes == 8


# In words -------------------------------------------------------------------------------------------------------------

COST = Cost(trainable=9_876_543, frozen=123_456_789, fixed=3 * 2**29, live=2**28, seconds=12.345)


@pytest.mark.parametrize(("times", "expected"), [(1.0, 1.75), (4.0, 2.5), (0.0, 1.5), (0.5, 1.625)])
def test_gigabytes(times, expected):
    assert COST.gigabytes(times) == expected
    if times == 1:
        assert COST.gigabytes() == expected


@pytest.mark.parametrize(("processes", "where"), [(1, ""), (8, " on 8 processes")])
def test_summary(processes, where):
    assert COST.summary(16, processes) == (
        "trainable parameters: 9.88 M, frozen: 123.5 M; memory: 1.75 GiB, of which 0.25 for a step; "
        f"a step of 16 crops{where}: 12.35 s"
    )
