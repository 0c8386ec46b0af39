"""What a user chooses of a cache, checked before anything is loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from simzss.features.quantise import STORAGES
from simzss.features.views import MOST_VIEWS
from simzss.errors import InputError, nearest
from simzss.device import resolve_precision

ACCELERATORS = ("auto", "cpu")


@dataclass(frozen=True)
class CacheSettings:
    """How features are made and kept; the defaults are those of `conf/cache.yaml`.

    Args:
        views: pictures of an image: the whole, then random crops.
        min_crop: smallest share of the image that a crop keeps.
        storage: `bfloat16`, `int8` or `float32`.
        file_mb: megabytes (10^6 bytes) of features in a file at most; one image at least.
        batch_size: images through the backbone at a time; None for what suits the machine.
        num_workers: decoding processes per process.
        seed: of the crops.

    Raises:
        InputError: a value that no run could use; names the key.
    """

    views: int = 1
    min_crop: float = 0.9
    storage: str = "bfloat16"
    file_mb: float = 256.0
    batch_size: int | None = None
    num_workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.views <= MOST_VIEWS:
            raise InputError(f"views={self.views} must be 1 to {MOST_VIEWS}")
        if not 0 < self.min_crop <= 1:
            raise InputError(f"min_crop={self.min_crop} must be above 0 and at most 1")
        if self.storage not in STORAGES:
            raise InputError(f"storage={self.storage} is unknown; {nearest(self.storage, STORAGES)}")
        if not 0 < self.file_mb < math.inf:
            raise InputError(f"file_mb={self.file_mb} must be above 0")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size} must be at least 1, or null")
        if self.num_workers < 0:
            raise InputError(f"data.num_workers={self.num_workers} must be at least 0")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed={self.seed} must be 0 to {2**32 - 1}")

    def block_size(self, device: torch.device) -> int:
        """Images through the backbone at a time.

        Few on a CPU: activations above 32 MB are mapped and unmapped by its allocator at every layer, which takes half
        the time.
        """
        return self.batch_size or (16 if device.type == "cpu" else 64)


def check_settings(plain: Mapping[str, Any]) -> CacheSettings:
    """The settings of a composition of `conf/cache.yaml`.

    Raises:
        InputError: names the key.
    """
    if plain["accelerator"] not in ACCELERATORS:
        raise InputError(
            f"accelerator={plain['accelerator']} is unknown; {nearest(plain['accelerator'], ACCELERATORS)}"
        )
    resolve_precision(plain["precision"], torch.device("cpu"))
    return CacheSettings(
        plain["views"],
        plain["min_crop"],
        plain["storage"],
        plain["file_mb"],
        plain["batch_size"],
        plain["data"]["num_workers"],
        plain["seed"],
    )
