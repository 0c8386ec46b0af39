"""The layers of a head by plain loops in float64, for one image: what the modules are compared with."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

Weights = dict[str, np.ndarray]


def noise(*shape: int, seed: int = 0, mean: float = 0.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean


def weights_of(module: nn.Module) -> Weights:
    return {name: value.detach().double().numpy() for name, value in module.named_parameters()}


def part(weights: Weights, name: str) -> Weights:
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def close(found: Tensor, expected: np.ndarray, within: float = 1e-9) -> None:
    assert np.isfinite(expected).all()
    torch.testing.assert_close(found.detach().double(), torch.from_numpy(expected), rtol=within, atol=within)


def linear(weights: Weights, row: np.ndarray) -> np.ndarray:
    """A row through a linear layer or a convolution of one cell."""
    matrix = weights["weight"].reshape(len(weights["weight"]), -1)
    return np.array([sum(a * b for a, b in zip(line, row, strict=True)) for line in matrix]) + weights["bias"]


def norm(weights: Weights, row: np.ndarray) -> np.ndarray:
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    return (row - mean) / math.sqrt(variance + 1e-5) * weights["weight"] + weights["bias"]


def two_layers(weights: Weights, row: np.ndarray) -> np.ndarray:
    hidden = linear(part(weights, "0"), row)
    gelu = np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in hidden])
    return linear(part(weights, "2"), gelu)


def each_position(layer: Callable[[np.ndarray], np.ndarray], maps: np.ndarray) -> np.ndarray:
    """(C, h, w) with the channels of every position through a layer."""
    rows = [[layer(maps[:, y, x]) for x in range(maps.shape[2])] for y in range(maps.shape[1])]
    return np.array(rows).transpose(2, 0, 1)


def block(weights: Weights, maps: np.ndarray) -> np.ndarray:
    """x + pointwise(GELU(pointwise(norm(depthwise(x))))), zeros around the map."""
    kernel = weights["depthwise.weight"][:, 0]
    size, (_, height, width) = kernel.shape[1], maps.shape
    padded = np.pad(maps, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    around = np.zeros_like(maps)
    for y in range(height):
        for x in range(width):
            window = padded[:, y : y + size, x : x + size]
            around[:, y, x] = weights["depthwise.bias"] + (kernel * window).sum(axis=(1, 2))
    return maps + each_position(lambda row: two_layers(part(weights, "mix"), norm(part(weights, "norm"), row)), around)


def shares(length: int, wanted: int, antialias: bool) -> np.ndarray:
    """(wanted, length) shares of cells along one axis: hats around the new centres, as wide as the larger cell."""
    ratio = length / wanted
    reach = max(ratio, 1.0) if antialias else 1.0
    found = np.zeros((wanted, length))
    for new in range(wanted):
        centre = (new + 0.5) * ratio
        if not antialias:
            centre = min(max(centre, 0.5), length - 0.5)
        for old in range(length):
            found[new, old] = max(0.0, 1 - abs(old + 0.5 - centre) / reach)
        found[new] /= found[new].sum()
    return found


def resized(maps: np.ndarray, size: tuple[int, int], antialias: bool = False) -> np.ndarray:
    """(..., h, w) in another size, bilinear."""
    down, across = shares(maps.shape[-2], size[0], antialias), shares(maps.shape[-1], size[1], antialias)
    return np.einsum("yh,xw,...hw->...yx", down, across, maps)


def attention(weights: Weights, heads: int, query, key, value, allowed: np.ndarray | None = None) -> np.ndarray:
    """(Q, C) of queries (Q, C) that attend to keys and values (N, C) where `allowed` (Q, N)."""
    names = {"query": query, "key": key, "value": value}
    q, k, v = ([linear(part(weights, name), row) for row in rows] for name, rows in names.items())
    depth = len(q[0]) // heads
    found = []
    for one in range(len(q)):
        out = np.zeros_like(q[one])
        seen = [other for other in range(len(k)) if allowed is None or allowed[one, other]]
        for head in range(heads):
            own = slice(head * depth, (head + 1) * depth)
            chances = softmax(np.array([q[one][own] @ k[other][own] / math.sqrt(depth) for other in seen]))
            out[own] = sum(chance * v[other][own] for other, chance in zip(seen, chances, strict=True))
        found.append(linear(part(weights, "out"), out))
    return np.array(found)


def positions(height: int, width: int, channels: int) -> np.ndarray:
    """(h * w, C): a quarter each of sines and cosines down, then of sines and cosines across."""
    quarter = channels // 4
    found = []
    for y in range(height):
        for x in range(width):
            row = []
            for at in (2 * math.pi * (y + 0.5) / height, 2 * math.pi * (x + 0.5) / width):
                phases = [at / 10_000 ** (number / quarter) for number in range(quarter)]
                row += [math.sin(phase) for phase in phases] + [math.cos(phase) for phase in phases]
            found.append(row)
    return np.array(found)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def softmax(row: np.ndarray) -> np.ndarray:
    exponents = np.array([math.exp(value - max(row)) for value in row])
    return exponents / sum(exponents)


def semantic(logits: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(S, H, W) of (Q, S + 1) class and (Q, H, W) mask logits: products of probabilities, summed over queries."""
    pairs = zip(logits, masks, strict=True)
    return sum(softmax(row)[:-1, None, None] * sigmoid(mask) for row, mask in pairs)


def ensemble(learned: np.ndarray, zero_shot: np.ndarray, exponents: list[float]) -> np.ndarray:
    """(S, H, W) of learned scores and the frozen model's logits, position by position."""
    count, found = len(learned), np.zeros_like(learned)
    for y in range(learned.shape[1]):
        for x in range(learned.shape[2]):
            own, total, theirs = learned[:, y, x], sum(learned[:, y, x]), softmax(zero_shot[:, y, x])
            mine = [(own[k] + 1e-3) / (total + 1e-3 * count) for k in range(count)]
            mixed = np.array([mine[k] ** (1 - exponents[k]) * theirs[k] ** exponents[k] for k in range(count)])
            present = min(max(total, 1e-3), 1.0)
            found[:, y, x] = present * mixed / sum(mixed) + (1 - present) / count
    return found
