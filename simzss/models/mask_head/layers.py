"""Layers of the mask head. Names of submodules and parameters, here and beside, are those of model folders."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each position of a map (B, C, h, w)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps (B, C, h, w), normalised."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DepthwiseBlock(nn.Module):
    """Residual block x + pointwise(GELU(pointwise(norm(depthwise(x))))), as in ConvNeXt (Liu et al. 2022).

    Args:
        width: channels.
        kernel: side of the depth-wise kernel in cells.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = LayerNorm2d(width)
        self.mix = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w)."""
        return maps + self.mix(self.norm(self.depthwise(maps)))


class Attention(nn.Module):
    """Multi-head attention with one mask for all heads.

    Args:
        width: channels.
        heads: number of heads; divides the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend from queries (B, Q, C) to keys and values (B, N, C).

        Args:
            query: (B, Q, C).
            key: (B, N, C).
            value: (B, N, C).
            allowed: (B, Q, N) bool, the keys that a query attends to; None for all.

        Returns:
            (B, Q, C).
        """
        parts = (self.query(query), self.key(key), self.value(value))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        mask = None if allowed is None else allowed[:, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Return two linear layers with a GELU between them."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


def sine_positions(maps: Tensor) -> Tensor:
    """Return the sine position encoding (h * w, C) of maps (B, C, h, w), C a multiple of 4 (DETR, Carion et al. 2020).

    Each axis goes from 0 to 2 pi over its whole length, whatever the resolution.
    """
    _, channels, height, width = maps.shape
    device = maps.device
    frequencies = 10_000 ** (-torch.arange(channels // 4, device=device) / (channels // 4))
    axes = []
    for length in (height, width):
        position = (torch.arange(length, device=device) + 0.5) * (2 * math.pi / length)
        phase = position[:, None] * frequencies
        axes.append(torch.cat([phase.sin(), phase.cos()], dim=1))
    down, across = axes[0][:, None].expand(-1, width, -1), axes[1][None].expand(height, -1, -1)
    return torch.cat([down, across], dim=2).flatten(0, 1)
