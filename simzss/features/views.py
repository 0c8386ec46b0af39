"""The views of an image that a cache holds: the whole image first, then random crops that are always the same."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from simzss.data.transforms import RandomCrop, WholeImage

TRANSFORM_VERSION = 1
"""Counted up when a view of the same photo by the same settings becomes another picture."""

MOST_VIEWS = 4


@dataclass(frozen=True)
class Views:
    """What makes `count` pictures of a photo.

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
    def least(self) -> int:
        """Pixels that each side of the photo needs; it is decoded once for all views."""
        return WholeImage(self.size).least if self.count == 1 else self._crop.least

    def facts(self) -> dict[str, Any]:
        """All that the pictures depend on, as plain JSON; one view draws nothing."""
        drawn = self.count > 1
        return {
            "version": TRANSFORM_VERSION,
            "views": self.count,
            "min_crop": self.min_crop if drawn else None,
            "seed": self.seed if drawn else None,
            "draft": self.least,  # JPEGs are decoded to no fewer pixels a side than this
        }

    def make(self, image: Image.Image, shard: str, key: str) -> Tensor:
        """(V, 3, size, size) uint8 of an RGB image that was decoded with `least`.

        Args:
            image: the photo.
            shard: name of its shard's file.
            key: of the sample.
        """
        pictures = [WholeImage(self.size)(image)]
        # The crop draws from torch's own generator of the CPU, which gets its state back.
        with torch.random.fork_rng(devices=[], enabled=self.count > 1):
            for view in range(1, self.count):
                torch.random.set_rng_state(self._state(view, shard, key))
                pictures.append(self._crop(image))
        return torch.stack(pictures)

    @property
    def _crop(self) -> RandomCrop:
        return RandomCrop(self.size, self.min_crop)

    def _state(self, view: int, shard: str, key: str) -> Tensor:
        # Names may hold half a surrogate pair, which has no bytes.
        name = f"{self.seed}/{view}/{shard}/{key}".encode(errors="backslashreplace")
        seed = int.from_bytes(hashlib.sha256(name).digest()[:7], "big")
        return torch.Generator().manual_seed(seed).get_state()
