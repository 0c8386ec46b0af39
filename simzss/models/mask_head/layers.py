"""Small layers that the head is made of."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each place of a map (B, C, h, w)."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) normed."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DepthwiseBlock(nn.Module):
    """x + pointwise(GELU(pointwise(norm(depthwise(x))))): what lies around a place, across borders of windows.

    Args:
        width: channels.
        kernel: side of the depth-wise kernel in cells.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = ChannelNorm(width)
        self.mix = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return maps + self.mix(self.norm(self.depthwise(maps)))


class Attention(nn.Module):
    """Multi-head attention whose mask all heads share.

    Args:
        width: channels.
        heads: divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(B, Q, C) of queries (B, Q, C), keys and values (B, N, C); `allowed` (B, Q, N) bool, None for all."""
        parts = (self.query(query), self.key(key), self.value(value))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        mask = None if allowed is None else allowed[:, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Two layers with a GELU between them."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


def sine_positions(maps: Tensor) -> Tensor:
    """Sines and cosines of the places of maps (B, C, h, w), C a multiple of 4: (h * w, C) (DETR, Carion et al. 2020).

    Each axis goes from 0 to 2 pi over its whole length, whatever the resolution.
    """
    _, channels, height, width = maps.shape
    device = maps.device
    frequencies = 10_000 ** (-torch.arange(channels // 4, device=device) / (channels // 4))
    axes = []
    for length in (height, width):
        at = (torch.arange(length, device=device) + 0.5) * (2 * math.pi / length)
        phase = at[:, None] * frequencies
        axes.append(torch.cat([phase.sin(), phase.cos()], dim=1))
    down, across = axes[0][:, None].expand(-1, width, -1), axes[1][None].expand(height, -1, -1)
    return torch.cat([down, across], dim=2).flatten(0, 1)
