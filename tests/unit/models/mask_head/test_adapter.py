import numpy as np
import pytest
import torch

from simzss.models.mask_head.adapter import MultiResAdapter
from simzss.models.mask_head.views import VIEWS
from tests.support.models import shaken
from tests.unit.models.mask_head import loops
from tests.unit.models.mask_head.loops import close, noise, part, weights_of

TAPPED, WIDTH = 6, 4
ROWS, COLUMNS, CELLS = 2, 3, 3  # windows and the cells along their sides
COARSE, FINE = (CELLS, CELLS), (ROWS * CELLS, COLUMNS * CELLS)
KINDS = [(views, gate, restore) for views in VIEWS for gate in (True, False) for restore in (True, False)]


def adapter(views: str, gate: bool, restore: bool) -> MultiResAdapter:
    torch.manual_seed(0)
    return shaken(MultiResAdapter(TAPPED, WIDTH, views, gate, restore), amount=0.3)


def levels_of(views: str, seed: int = 0) -> list[torch.Tensor]:
    coarse, fine = noise(2, TAPPED, *COARSE, seed=seed).float(), noise(2, TAPPED, *FINE, seed=seed + 1).float()
    return {"both": [coarse, fine], "global": [coarse], "windows": [fine]}[views]


def by_loop(layer: MultiResAdapter, levels: list[np.ndarray], views: str, gate: bool, restore: bool) -> list:
    """Of one image."""
    weights = weights_of(layer)

    def projected(row: np.ndarray) -> np.ndarray:
        return loops.linear(part(weights, "project.1"), loops.norm(part(weights, "project.0"), row))

    found = [loops.each_place(projected, level) for level in levels]
    if views != "windows":
        found[0] = loops.block(part(weights, "coarse"), found[0])
    if views != "global" and restore:
        found[-1] = loops.block(part(weights, "fine"), found[-1])
    if views == "both":
        fine, around = found[1], loops.resized(found[0], FINE)
        mixed = np.zeros_like(fine)
        for y in range(FINE[0]):
            for x in range(FINE[1]):
                share = np.array([0.5, 0.5])
                if gate:
                    share = loops.softmax(
                        loops.linear(part(weights, "gate"), np.concatenate([fine[:, y, x], around[:, y, x]]))
                    )
                mixed[:, y, x] = share[0] * fine[:, y, x] + share[1] * around[:, y, x]
        found[1] = mixed
    return found


@pytest.mark.parametrize(("views", "gate", "restore"), KINDS)
def test_an_adapter_equals_a_loop(views, gate, restore):
    layer, levels = adapter(views, gate, restore), levels_of(views)
    found = layer(levels)
    assert len(found) == len(levels)
    for image in range(2):
        expected = by_loop(layer, [level[image].double().numpy() for level in levels], views, gate, restore)
        for level, own in zip(found, expected, strict=True):
            close(level[image], own, 1e-5)


@pytest.mark.parametrize(("views", "gate", "restore"), KINDS)
def test_nothing_is_left_without_a_use(views, gate, restore):
    layer = adapter(views, gate, restore)
    torch.stack([level.square().sum() for level in layer(levels_of(views))]).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())


def test_features_in_bfloat16_are_taken_in_float32():
    layer = adapter("both", True, True)
    levels = [level.bfloat16() for level in levels_of("both")]
    for found, expected in zip(layer(levels), layer([level.float() for level in levels]), strict=True):
        assert found.dtype == torch.float32 and found.equal(expected)


@pytest.mark.parametrize("taken", [0, 1], ids=["whole image", "windows"])
def test_the_gate_can_take_one_side_alone(taken):
    layer = adapter("both", True, True)
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.bias.copy_(torch.tensor([50.0, -50.0] if taken == 1 else [-50.0, 50.0]))
    levels, others = levels_of("both"), levels_of("both", seed=7)
    found = layer(levels)[1]
    levels[1 - taken] = others[1 - taken]
    torch.testing.assert_close(layer(levels)[1], found, rtol=1e-5, atol=1e-5)
    levels[taken] = others[taken]
    assert (layer(levels)[1] - found).abs().max() > 0.1


# Borders of windows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("views", ["both", "windows"])
@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize("window", [(0, 0), (0, 1), (1, 2)], ids=str)
def test_how_far_a_window_reaches(window, restore, views, gate):
    layer = adapter(views, gate, restore)
    levels = levels_of(views)
    before = layer(levels)[-1]
    own = torch.zeros(FINE, dtype=torch.bool)
    own[window[0] * CELLS : (window[0] + 1) * CELLS, window[1] * CELLS : (window[1] + 1) * CELLS] = True
    levels[-1] = torch.where(own, levels[-1] + noise(*levels[-1].shape, seed=5).float(), levels[-1])
    changed = ((layer(levels)[-1] - before).abs().amax(dim=(0, 1)) > 1e-6).tolist()
    reach = 2 if restore else 0
    for y in range(FINE[0]):
        for x in range(FINE[1]):
            near = (
                window[0] * CELLS - reach <= y < (window[0] + 1) * CELLS + reach
                and window[1] * CELLS - reach <= x < (window[1] + 1) * CELLS + reach
            )
            assert changed[y][x] == near, (y, x)
