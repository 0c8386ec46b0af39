"""The interface of refinements, which make class probabilities follow the edges of the photo."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.data.settings import Background
from simzss.segmentation.classifier import ClassProbabilities
from simzss.segmentation.inference.encoder import ImageEncoding
from simzss.segmentation.inference.scores import ScoreMap
from simzss.settings.base import Settings

CHUNK_BYTES = 2**26
"""Masks at full size at a time, at least one."""


class Counts(ABC):
    """Statistics of the regions of a refinement, a dataclass of numbers and (K,) tensors; `+` sums over images."""

    def __add__(self, other: Self) -> Self:
        own = (field.name for field in fields(self))  # type: ignore[arg-type]
        return type(self)(*(getattr(self, name) + getattr(other, name) for name in own))

    @abstractmethod
    def by_name(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the counts as plain values, those of classes by name where there are any."""


class Refinement(ABC):
    """Refined class probabilities of an image of H x W pixels.

    Attributes:
        labels: (H, W) int64.
        counts: of regions, where the refinement has any.
    """

    labels: Tensor
    counts: Counts | None = None

    @abstractmethod
    def scores(self) -> Tensor:
        """Compute scores (K, H, W) float32, such as probabilities, whose argmax is the label."""

    def logits(self) -> Tensor:
        """Compute the logarithms of `scores`."""
        return ClassProbabilities().logits(self.scores())


class Refiner(ABC):
    """Refines class probabilities along the edges of the photo. Safe for several threads: it keeps nothing of an image.

    Attributes:
        needs_sam: the encoding must hold that of a Segment Anything model.
        settings: as recorded with results.
    """

    needs_sam = False
    settings: Settings | None = None

    @abstractmethod
    def __call__(self, image: ImageEncoding, probabilities: Tensor, background: Background) -> Refinement:
        """Refine one image.

        Args:
            image: encoding of the image.
            probabilities: (K, h, w) at the size of the resized image.
            background: rule, which makes class 0 if it is present.

        Returns:
            The result at the photo's size.
        """

    def describe(self, background: Background) -> dict[str, Any]:
        """Return `kind` and settings as they are recorded with results."""
        return {"kind": type(self).__name__} if self.settings is None else self.settings.plain()


class MapRefinement(Refinement):
    """Refined probabilities (K, h, w), interpolated to a size (H, W)."""

    def __init__(self, probabilities: Tensor, size: tuple[int, int]) -> None:
        shape = (probabilities.shape[1], probabilities.shape[2])
        self._map = ScoreMap(probabilities[None], None, shape, shape, size)
        self.labels = self._map.labels(ClassProbabilities())

    def scores(self) -> Tensor:
        """See `Refinement`."""
        return self._map.full()


def coarse_labels(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (H, W) int64: the most probable class of each pixel, (K, h, w) being interpolated to that size."""
    if tuple(probabilities.shape[1:]) == size:
        return probabilities.argmax(dim=0)
    return MapRefinement(probabilities, size).labels


def coarse_scores(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate (K, h, w) -> (K, H, W) float32, bilinear, half-pixel centres; never held twice."""
    scores = probabilities.new_empty(len(probabilities), *size, dtype=torch.float32)
    for plane, source in zip(scores, probabilities, strict=True):
        plane.copy_(resized(source, size))
    return scores


def resized(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate (h, w) -> (H, W) float32, bilinear, half-pixel centres."""
    return F.interpolate(plane[None, None].float(), size, mode="bilinear")[0, 0]


def lost_classes(before: Tensor, after: Tensor, count: int) -> Tensor:
    """Return (count,) int64 on the CPU: 1 for classes that some label (H, W) has before, and none after."""
    had, has = (labels.flatten().bincount(minlength=count) > 0 for labels in (before, after))
    return (had & ~has).long().cpu()
