"""Features as they are stored, on their way to the training step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from simzss.features.quantise import dequantise
from simzss.models.features import ImageFeatures


@dataclass
class StoredFeatures:
    """Features of B pictures as they are stored: `cls` (B, D), `patches` (B, N, D), with int8 their `scale` (B, N)."""

    cls: Tensor
    patches: Tensor
    scale: Tensor | None
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.cls)

    def map(self, change: Callable[[Tensor], Tensor]) -> "StoredFeatures":
        """Return a copy with a function applied to every tensor, such as one that moves or pins it."""
        scale = None if self.scale is None else change(self.scale)
        return StoredFeatures(change(self.cls), change(self.patches), scale, self.grid)

    def to(self, device: torch.device) -> "StoredFeatures":
        """Return a copy on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def split(self, size: int) -> list["StoredFeatures"]:
        """Return consecutive blocks of `size` pictures; views, no copies."""
        blocks = [slice(start, start + size) for start in range(0, len(self), size)]
        return [self.map(lambda tensor, block=block: tensor[block]) for block in blocks]  # type: ignore[misc]

    def features(self, dtype: torch.dtype | None = None) -> ImageFeatures:
        """Return features to compute with, in `dtype`; None: as stored, int8 as float32."""
        if self.scale is not None:
            dtype = dtype or torch.float32
            return ImageFeatures(self.cls.to(dtype), dequantise(self.patches, self.scale, dtype), self.grid)
        dtype = dtype or self.patches.dtype
        return ImageFeatures(self.cls.to(dtype), self.patches.to(dtype), self.grid)
