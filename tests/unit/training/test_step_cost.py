import pytest
import torch
from torch import nn

from simzss.training.step_cost import StepCost, measure_step


class Model(nn.Module):
    """A frozen part in bfloat16 and a trainable one."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(7, 3, dtype=torch.bfloat16).requires_grad_(False)
        self.weight = nn.Parameter(torch.ones(1000))
        self.unused = nn.Parameter(torch.ones(11))

    def loss(self, images: int = 1) -> torch.Tensor:
        """Saves the noise, and the squares, which a view of them shares."""
        return (self.weight * torch.rand(images, 1000)).square().flatten().exp().sum()


@pytest.mark.parametrize("images", [1, 5])
def test_a_step_by_hand(images):
    """Saved are noise, products, and exponentials; the trainable weight itself is none of them."""
    model = Model()
    cost = measure_step(model, lambda: model.loss(images))
    assert (cost.trainable, cost.frozen) == (1011, 24)
    assert cost.fixed == 2 * 24 + (4 + 8) * 1011
    assert cost.live == 4 * 3000 * images + 4 * 1011
    assert cost.seconds > 0


@pytest.mark.parametrize("fails", [False, True])
def test_a_measurement_leaves_no_trace(fails):
    model, gradient = Model(), torch.full((1000,), 2.0)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.weight.grad = gradient.clone()
    state = torch.get_rng_state()
    try:
        measure_step(model, lambda: [model.loss()][int(fails)])
    except IndexError:
        assert fails
    assert torch.get_rng_state().equal(state) and model.weight.grad.equal(gradient)
    assert all(own.grad is None for name, own in model.named_parameters() if name != "weight")
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("processes", "where"), [(1, ""), (8, " on 8 processes")])
def test_summary(processes, where):
    cost = StepCost(trainable=9_876_543, frozen=123_456_789, fixed=3 * 2**29, live=2**28, seconds=12.345)
    assert [cost.gigabytes(factor) for factor in (1.0, 4.0, 0.0)] == [1.75, 2.5, 1.5]
    assert cost.summary(16, processes) == (
        "trainable parameters: 9.88 M, frozen: 123.5 M; memory: 1.75 GiB, of which 0.25 for a step; "
        f"a step of 16 crops{where}: 12.35 s"
    )
