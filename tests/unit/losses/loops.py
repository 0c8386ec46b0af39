"""Losses and matching by loops in Python's own floats, gradients by differences, and steps on two real processes."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.processes import WORLD, on_two_processes

STEP = 1e-5  # of finite differences


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(*shape: int, seed: int = 0, chance: float = 0.6) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < chance


def softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def bce_of(logits: list[float], inside: list[bool], counted: list[bool]) -> float:
    """Mean over the points that count."""
    parts = [softplus(-x if t else x) for x, t, c in zip(logits, inside, counted, strict=True) if c]
    return sum(parts) / len(parts) if parts else 0.0


def dice_of(logits: list[float], inside: list[bool], counted: list[bool]) -> float:
    points = [(math.exp(-softplus(-x)), float(t)) for x, t, c in zip(logits, inside, counted, strict=True) if c]
    both, either = sum(a * b for a, b in points), sum(a + b for a, b in points)
    return 1 - (2 * both + 1) / (either + 1)


def cross_entropy(logits: list, targets: list, counted: list, eos_coef: float) -> float:
    """Of nested lists (B, Q, K + 1)."""
    total = weights = 0.0
    for image, labels, counts in zip(logits, targets, counted, strict=True):
        for row, label in zip(image, labels, strict=True):
            weight = (eos_coef if label == len(row) - 1 else 1.0) if counts else 0.0
            total -= weight * math.log(softmax(row)[label])
            weights += weight
    return total / weights if weights else 0.0


def cheapest(cost: Tensor) -> list[tuple[int, int]]:
    """Pairs of query and object, by query, of least total cost, by trying all; of NaN and infinity as few as can be."""
    queries, objects = cost.shape
    fewer = min(queries, objects)
    orders = itertools.permutations(range(max(queries, objects)), fewer)
    tried = [list(zip(o, range(fewer), strict=True) if queries >= objects else enumerate(o)) for o in orders]

    def total(pairs: list[tuple[int, int]]) -> tuple[int, float]:
        values = [float(cost[pair]) for pair in pairs]
        finite = [value for value in values if math.isfinite(value)]
        return len(values) - len(finite), sum(finite)

    return sorted(min(tried, key=total))


def differences(function: Callable[[list], float], values: Tensor) -> Tensor:
    """Gradient of a function of nested lists."""
    found = torch.zeros_like(values)
    for place in itertools.product(*(range(length) for length in values.shape)):
        sides = []
        for sign in (1, -1):
            moved = values.clone()
            moved[place] += sign * STEP
            sides.append(function(moved.tolist()))
        found[place] = (sides[0] - sides[1]) / (2 * STEP)
    return found


def averaged_over_ranks(compute: Callable[[int], dict[Any, dict[str, Tensor]]], folder: Path) -> Any:
    """Values of cases that each of two processes computes of its rows, averaged over both, as DDP does."""

    def work(rank: int) -> Any:
        found = compute(rank)
        for case in found.values():
            for value in case.values():
                dist.all_reduce(value)
                value /= WORLD
        return found

    return on_two_processes(work, folder)[0]
