"""Images of a batch, as pixels or as cached features; each kind turns itself into unit features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simzss.features.store import FeatureStore
from simzss.features.stored import StoredFeatures
from simzss.models.features import ImageFeatures
from simzss.models.simzss import SimZSS

# Cached images that become unit vectors at a time: in float32 they take many times the memory of their storage.
_BLOCK = 1024


class BatchImages(Protocol):
    """I images."""

    def __len__(self) -> int: ...

    def map(self, change: Callable[[Tensor], Tensor]) -> "BatchImages":
        """Return a copy with a function applied to every tensor, such as one that moves or pins it."""

    def features(self, model: SimZSS) -> ImageFeatures:
        """Return L2-normalised features: `cls` (I, D) in float32, `patches` (I, N, D)."""


@dataclass(frozen=True)
class Pixels:
    """Photos, which the backbone encodes in every step.

    Attributes:
        pixels: (I, 3, H, W) uint8.
        micro_batch: images through the backbone at a time; None: all.
    """

    pixels: Tensor
    micro_batch: int | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Pixels":
        """See `BatchImages`."""
        return Pixels(change(self.pixels), self.micro_batch)

    def features(self, model: SimZSS) -> ImageFeatures:
        """See `BatchImages`."""
        return _concatenated([model.encode_image(part) for part in self.pixels.split(self.micro_batch or len(self))])


@dataclass(frozen=True)
class CachedFeatures:
    """Features from a cache, which travel with the batch.

    Attributes:
        stored: of I images.
        normalised: whether they are unit vectors already.
    """

    stored: StoredFeatures
    normalised: bool

    def __len__(self) -> int:
        return len(self.stored)

    def map(self, change: Callable[[Tensor], Tensor]) -> "CachedFeatures":
        """See `BatchImages`."""
        return CachedFeatures(self.stored.map(change), self.normalised)

    def features(self, model: SimZSS) -> ImageFeatures:
        """See `BatchImages`; patches are in the float type of the cache."""
        parts = []
        for part in self.stored.split(_BLOCK):
            raw = part.features()
            unit = raw if self.normalised else model.feature_norm(raw)
            parts.append(ImageFeatures(unit.cls.float(), unit.patches.to(part.cls.dtype), part.grid))
        return _concatenated(parts)


@dataclass(frozen=True)
class CachedRows:
    """Rows of a cache in the accelerator's memory, gathered there within the step.

    Attributes:
        rows: (I,) images of the store.
        views: (I,) view of each.
        store: that has them.
    """

    rows: Tensor
    views: Tensor
    store: FeatureStore

    def __len__(self) -> int:
        return len(self.rows)

    def map(self, change: Callable[[Tensor], Tensor]) -> "CachedRows":
        """See `BatchImages`."""
        return CachedRows(change(self.rows), change(self.views), self.store)

    def features(self, model: SimZSS) -> ImageFeatures:
        """See `BatchImages`."""
        return CachedFeatures(self.store.rows(self.rows, self.views), self.store.normalised).features(model)


def _concatenated(parts: list[ImageFeatures]) -> ImageFeatures:
    cls, patches = torch.cat([part.cls for part in parts]), torch.cat([part.patches for part in parts])
    return ImageFeatures(cls, patches, parts[0].grid)
