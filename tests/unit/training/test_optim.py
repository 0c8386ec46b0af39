import math

import pytest
import torch
from torch import nn

from simzss.models.simzss import SimZSS
from simzss.training.optim import build_optimizer, warmup_cosine
from tests.support.models import make_backbone, make_bert, make_scratch, save_bert

ADAMW = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2}


def decays(name: str) -> bool:
    """What decays, told by name: matrices and embeddings; not biases, norms, temperatures."""
    return name.endswith("weight") and "norm" not in name.lower()


@pytest.fixture(params=["scratch", "bert"])
def model(request, tmp_path):
    text = make_scratch() if request.param == "scratch" else make_bert(save_bert(tmp_path / "bert"))
    return SimZSS(make_backbone(), text)


def test_groups(model):
    optimizer = build_optimizer(model.parameters(), **ADAMW)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(found) == learning and not any(name.startswith("backbone.") for name in found)
    assert found == {name: 0.2 if decays(name) else 0.0 for name in learning}
    assert found["logit_scale"] == 0.0 and found["text_encoder.projection.weight"] == 0.2
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(learning)  # none twice
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.01, (0.9, 0.98), 1e-6)


def test_two_steps_by_hand():
    """AdamW (decoupled decay) of a matrix and its bias, in plain Python."""
    layer = nn.Linear(1, 1)
    values = {"weight": 0.7, "bias": -0.3}
    with torch.no_grad():
        layer.weight.fill_(values["weight"])
        layer.bias.fill_(values["bias"])
    optimizer = build_optimizer(layer.parameters(), **ADAMW)
    gradients = {"weight": (0.5, -2.0), "bias": (0.1, 0.3)}
    for name, (first, second) in gradients.items():
        mean = square = 0.0
        for step, gradient in enumerate((first, second), start=1):
            values[name] *= 1 - 0.01 * (0.2 if name == "weight" else 0.0)
            mean, square = 0.9 * mean + 0.1 * gradient, 0.98 * square + 0.02 * gradient**2
            values[name] -= 0.01 * (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - 0.98**step)) + 1e-6)
    for step in range(2):
        layer.weight.grad = torch.full((1, 1), gradients["weight"][step])
        layer.bias.grad = torch.full((1,), gradients["bias"][step])
        optimizer.step()
    assert layer.weight.item() == pytest.approx(values["weight"], abs=1e-6)
    assert layer.bias.item() == pytest.approx(values["bias"], abs=1e-6)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.25),
        (1, 0.5),
        (2, 0.75),
        (3, 1.0),
        (4, 1.0),  # cos 0
        (6, 0.5 + 0.5 * math.sqrt(0.5)),  # a quarter of the way: cos 45°
        (8, 0.5),  # half the way: cos 90°
        (10, 0.5 - 0.5 * math.sqrt(0.5)),
        (12, 0.0),
        (500, 0.0),
    ],
)
def test_warmup_and_cosine(step, factor):
    assert warmup_cosine(step, 4, 12) == pytest.approx(factor, abs=1e-12)


def test_without_warmup():
    assert [warmup_cosine(step, 0, 3) for step in range(4)] == pytest.approx([1.0, 0.75, 0.25, 0.0])


def test_nothing_but_warmup():
    assert [warmup_cosine(step, 2, 2) for step in range(3)] == pytest.approx([0.5, 1.0, 1.0])


def test_shape_of_the_schedule():
    factors = [warmup_cosine(step, 30, 300) for step in range(301)]
    assert all(0 <= factor <= 1 for factor in factors) and max(factors) == 1.0
    assert factors[:30] == sorted(factors[:30]) and factors[30:] == sorted(factors[30:], reverse=True)
    assert sum(factors[30:300]) == pytest.approx(270 / 2 + 0.5)  # the mean of a cosine from 1 to 0, first step included
