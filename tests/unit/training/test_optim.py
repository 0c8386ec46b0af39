import math

import pytest
import torch
from torch import nn

from simzss.models.simzss import SimZSS
from simzss.training.optim import build_optimizer, warmup_cosine
from simzss.training.settings import OptimSettings
from tests.support.models import make_backbone, make_bert, make_scratch, save_bert

ADAMW = OptimSettings(lr=0.01, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)


def decays(name: str) -> bool:
    """Tell by its name whether a parameter decays: matrices and embeddings; not biases, norms, temperatures."""
    return name.endswith("weight") and "norm" not in name.lower()


@pytest.fixture(params=["scratch", "bert"])
def model(request, tmp_path):
    text = make_scratch() if request.param == "scratch" else make_bert(save_bert(tmp_path / "bert"))
    return SimZSS(make_backbone(), text)


def test_groups(model):
    optimizer = build_optimizer(model.parameters(), ADAMW)
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
    optimizer = build_optimizer(layer.parameters(), ADAMW)
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
    ("warmup", "total", "factors"),
    [
        (0, 3, {0: 1.0, 1: 0.75, 2: 0.25, 3: 0.0}),
        (2, 2, {0: 0.5, 1: 1.0, 2: 1.0}),
        (
            4,
            12,
            {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0, 6: 0.5 + 0.5 * math.sqrt(0.5), 8: 0.5}
            | {10: 0.5 - 0.5 * math.sqrt(0.5), 12: 0.0, 500: 0.0},
        ),
    ],
)
def test_warmup_and_cosine(warmup, total, factors):
    assert {step: warmup_cosine(step, warmup, total) for step in factors} == pytest.approx(factors, abs=1e-12)
