"""The views of an image that are cached: the whole image first, then random crops that are always the same."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from simzss.data.transforms import RandomCrop, WholeImage

TRANSFORM_VERSION = 1
"""Counted up when a view of the same photo by the same settings becomes another picture."""


@dataclass(frozen=True)
class Views:
    """Deterministic transform of a photo to `count` pictures.

    View 0 is the whole image: nothing that a caption names is cut off. A crop is drawn from a random state that depends
    on nothing but the seed, the view, and the names of the shard's file and of the sample in it.

    Args:
        size: side of a picture in pixels.
        count: V.
        min_crop: smallest share of the image that a crop keeps.
        seed: of the crops.
    """

    size: int
    count: int = 1
    min_crop: float = 0.9
    seed: int = 0

    @property
    def min_side(self) -> int:
        """Return the minimum side in pixels for JPEG draft decoding; the photo is decoded once for all views."""
        return WholeImage(self.size).min_side if self.count == 1 else self._crop.min_side

    def metadata(self) -> dict[str, Any]:
        """Return all that the pictures depend on, as plain JSON; one view draws nothing."""
        drawn = self.count > 1
        return {
            "version": TRANSFORM_VERSION,
            "views": self.count,
            "min_crop": self.min_crop if drawn else None,
            "seed": self.seed if drawn else None,
            "draft": self.min_side,
        }

    def make(self, image: Image.Image, shard: str, key: str) -> Tensor:
        """Transform a photo to (V, 3, size, size) uint8.

        Args:
            image: RGB, decoded with `min_side`.
            shard: name of its shard's file.
            key: of the sample.
        """
        pictures = [WholeImage(self.size)(image)]
        for view in range(1, self.count):
            generator = torch.Generator().manual_seed(self._crop_seed(view, shard, key))
            pictures.append(self._crop(image, generator))
        return torch.stack(pictures)

    @property
    def _crop(self) -> RandomCrop:
        return RandomCrop(self.size, self.min_crop)

    def _crop_seed(self, view: int, shard: str, key: str) -> int:
        # Names may hold half a surrogate pair, which has no bytes.
        name = f"{self.seed}/{view}/{shard}/{key}".encode(errors="backslashreplace")
        return int.from_bytes(hashlib.sha256(name).digest()[:7], "big")
