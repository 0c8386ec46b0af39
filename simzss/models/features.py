"""Outputs of the two towers."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass
class ImageFeatures:
    """Features of B images: `cls` (B, D), `patches` (B, N, D) in row-major order of `grid` = (h, w), N = h * w."""

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]

    def map(self, change: Callable[[Tensor], Tensor]) -> "ImageFeatures":
        """Apply a function to both tensors, such as a move to a device."""
        return ImageFeatures(change(self.cls), change(self.patches), self.grid)


@dataclass
class TextFeatures:
    """Features of B texts: sentence `pooled` (B, D) and per-token `tokens` (B, L, D), padded to L."""

    pooled: Tensor
    tokens: Tensor
