from itertools import product

import numpy as np
import pytest
import torch

from simzss.models.mask_head.adapter import FeatureAdapter
from tests.support.models import shaken
from tests.unit.models.mask_head import loops
from tests.unit.models.mask_head.loops import close, noise, part, weights_of

CHANNELS, WIDTH = 6, 4
ROWS, COLUMNS, CELLS = 2, 3, 3  # windows and the cells along their sides
COARSE, FINE = (CELLS, CELLS), (ROWS * CELLS, COLUMNS * CELLS)
KINDS = list(product(("both", "global", "windows"), (True, False), (True, False)))


def adapter(views: str, gate: bool, restore: bool) -> FeatureAdapter:
    torch.manual_seed(0)
    return shaken(FeatureAdapter(CHANNELS, WIDTH, views, gate, restore), amount=0.3)


def levels_of(views: str) -> list[torch.Tensor]:
    coarse, fine = noise(2, CHANNELS, *COARSE).float(), noise(2, CHANNELS, *FINE, seed=1).float()
    return {"both": [coarse, fine], "global": [coarse], "windows": [fine]}[views]


def by_loop(layer: FeatureAdapter, levels: list[np.ndarray], views: str, gate: bool, restore: bool) -> list:
    """Of one image."""
    weights = weights_of(layer)

    def projected(row: np.ndarray) -> np.ndarray:
        return loops.linear(part(weights, "project.1"), loops.norm(part(weights, "project.0"), row))

    found = [loops.each_position(projected, level) for level in levels]
    if views != "windows":
        found[0] = loops.block(part(weights, "coarse"), found[0])
    if views != "global" and restore:
        found[-1] = loops.block(part(weights, "fine"), found[-1])
    if views == "both":
        both = np.concatenate([found[1], loops.resized(found[0], FINE)])

        def mixed(row: np.ndarray) -> np.ndarray:
            share = loops.softmax(loops.linear(part(weights, "gate"), row)) if gate else [0.5, 0.5]
            return share[0] * row[:WIDTH] + share[1] * row[WIDTH:]

        found[1] = loops.each_position(mixed, both)
    return found


@pytest.mark.parametrize(("views", "gate", "restore"), KINDS)
def test_an_adapter_equals_a_loop_and_all_of_it_learns(views, gate, restore):
    layer, levels = adapter(views, gate, restore), levels_of(views)
    found = layer([level.bfloat16() for level in levels])  # computed in float32
    for image in range(2):
        given = [level[image].bfloat16().double().numpy() for level in levels]
        for level, own in zip(found, by_loop(layer, given, views, gate, restore), strict=True):
            close(level[image], own, 1e-5)
    torch.stack([level.square().sum() for level in found]).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())
