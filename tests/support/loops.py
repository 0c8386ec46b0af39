"""Plain loops in float64 over cells, patches and pixels, from the formulas: what vectorised code is compared with."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def linear(weights: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    out = rows @ weights[f"{name}.weight"].T
    return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out


def layer_norm(weights: Mapping[str, Tensor], name: str, rows: Tensor, eps: float) -> Tensor:
    if f"{name}.weight" not in weights:
        return rows
    centred = rows - rows.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def sampled(cells: Tensor, row: float, column: float) -> Tensor:
    """Interpolate a map (C, h, w) bilinearly at a position relative to the centre of its first cell; edges repeat."""
    row = min(max(row, 0.0), cells.shape[1] - 1.0)
    column = min(max(column, 0.0), cells.shape[2] - 1.0)
    total = torch.zeros(len(cells), dtype=torch.float64)
    for y in (math.floor(row), math.floor(row) + 1):
        for x in (math.floor(column), math.floor(column) + 1):
            share = (1 - abs(row - y)) * (1 - abs(column - x))
            if share > 0:
                total += share * cells[:, y, x].double()
    return total


def enlarged(cells: Tensor, height: int, width: int) -> Tensor:
    """Resize (C, h, w) -> (C, height, width), bilinear with half-pixel centres, larger or smaller."""
    out = torch.zeros(len(cells), height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            at = ((y + 0.5) * cells.shape[1] / height - 0.5, (x + 0.5) * cells.shape[2] / width - 0.5)
            out[:, y, x] = sampled(cells, *at)
    return out


def proxy_average(proxy: Tensor, values: Tensor, beta: float, gamma: float) -> Tensor:
    """Average values (N, C) of one image by the cosines of its proxy features (N, G), patch by patch."""
    proxy, values = proxy.double(), values.double()
    count = len(proxy)
    cosines = torch.zeros(count, count, dtype=torch.float64)
    for i in range(count):
        for j in range(count):
            lengths = float(proxy[i].norm() * proxy[j].norm())
            cosines[i, j] = float(proxy[i] @ proxy[j]) / lengths if lengths > 0 else 0.0
    mean = float(cosines.sum()) / count**2
    out = torch.zeros_like(values)
    for i in range(count):
        scores = [(float(cosines[i, j]) - beta * mean) * gamma for j in range(count)]
        shares = [math.exp(scores[j]) if scores[j] >= 0 or i == j else 0.0 for j in range(count)]
        for j in range(count):
            out[i] += shares[j] / sum(shares) * values[j]
    return out


def proxy_block(
    weights: Mapping[str, Tensor],
    tokens: Tensor,
    grid: tuple[int, int],
    proxy: Tensor,
    beta: float,
    gamma: float,
    eps: float,
) -> Tensor:
    """Compute the attention part of a block for one image.

    Tokens are (T, C), the last h * w of them patches, and the proxy is (G, h', w').

    Heads do not matter: all of them average by the same shares.
    """
    weights = {name: value.double() for name, value in weights.items()}
    normed = layer_norm(weights, "norm1", tokens.double(), eps)
    channels = tokens.shape[1]
    values = linear(weights, "attn.qkv", normed)[len(tokens) - grid[0] * grid[1] :, 2 * channels :]
    cells = torch.zeros(channels, *grid, dtype=torch.float64)
    for y in range(grid[0]):
        for x in range(grid[1]):
            cells[:, y, x] = values[y * grid[1] + x]
    cells = enlarged(cells, proxy.shape[1], proxy.shape[2])
    places = [(y, x) for y in range(proxy.shape[1]) for x in range(proxy.shape[2])]
    out = proxy_average(
        torch.stack([proxy[:, y, x] for y, x in places]),
        torch.stack([cells[:, y, x] for y, x in places]),
        beta,
        gamma,
    )
    out = linear(weights, "attn.proj", layer_norm(weights, "attn.norm", out, eps))
    return out * weights["ls1.gamma"] if "ls1.gamma" in weights else out
