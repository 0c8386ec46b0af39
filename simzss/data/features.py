"""Features of a frozen backbone, computed once and kept: on disk when asked, in memory for the run."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from simzss.concepts.concept import Caption
from simzss.errors import InputError
from simzss.models.feature_norm import FeatureNorm
from simzss.models.features import ImageFeatures


@dataclass
class FeatureSet:
    """Features of n images with all their captions.

    `cls` (n, D) and `patches` (n, N, D) in the dtype of the backbone's run, raw until `normalise`; `captions[i]`
    belongs to row i.
    """

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]
    captions: list[tuple[Caption, ...]]

    def __len__(self) -> int:
        return len(self.cls)

    def rows(self, indices: Tensor) -> ImageFeatures:
        """Features of some images."""
        return ImageFeatures(self.cls[indices], self.patches[indices], self.grid)

    @torch.no_grad()
    def normalise(self, norm: FeatureNorm, block: int = 64) -> None:
        """Replace the raw features by the unit vectors of `norm`, in place."""
        device = norm.patch_mean.device
        for rows in torch.arange(len(self)).split(block):
            raw = self.rows(rows)
            unit = norm(ImageFeatures(raw.cls.to(device), raw.patches.to(device), self.grid))
            self.cls[rows] = unit.cls.to("cpu", self.cls.dtype)
            self.patches[rows] = unit.patches.to("cpu", self.patches.dtype)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write one safetensors file; whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        captions = [[caption.to_json() for caption in captions] for captions in self.captions]
        metadata = {"fingerprint": fingerprint, "grid": json.dumps(self.grid), "captions": json.dumps(captions)}
        partial = path.with_suffix(".partial")
        save_file({"cls": self.cls.contiguous(), "patches": self.patches.contiguous()}, partial, metadata)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> "FeatureSet":
        """Read what `save` wrote.

        Raises:
            InputError: unreadable, or made by another backbone, transform or set of shards.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("fingerprint") != fingerprint:
                    raise InputError(
                        f"feature cache {path} was made with another backbone, image size or set of shards; "
                        "delete it or give another data.cache_dir"
                    )
                tensors = {name: file.get_tensor(name) for name in ("cls", "patches")}
        except InputError:
            raise
        except Exception as error:
            # safetensors raises its own Rust-made type on a broken file.
            raise InputError(f"feature cache {path} cannot be read: {error}") from error
        captions = [tuple(Caption.from_json(record) for record in group) for group in json.loads(metadata["captions"])]
        height, width = json.loads(metadata["grid"])
        return cls(tensors["cls"], tensors["patches"], (height, width), captions)


class FeatureSetBuilder:
    """Collects features batch by batch into one preallocated block (no doubling of memory at the end).

    Args:
        capacity: most images that will come.
        dtype: of the kept features.
    """

    def __init__(self, capacity: int, dtype: torch.dtype) -> None:
        self.capacity = capacity
        self.dtype = dtype
        self.count = 0
        self._cls: Tensor | None = None
        self._patches: Tensor | None = None
        self._grid = (0, 0)
        self._captions: list[tuple[Caption, ...]] = []

    def add(self, features: ImageFeatures, captions: list[tuple[Caption, ...]]) -> None:
        """Append B images."""
        if self._cls is None or self._patches is None:
            self._cls = torch.empty(self.capacity, features.cls.shape[-1], dtype=self.dtype)
            self._patches = torch.empty(self.capacity, *features.patches.shape[1:], dtype=self.dtype)
            self._grid = features.grid
        rows = slice(self.count, self.count + len(features.cls))
        self._cls[rows] = features.cls.to("cpu", self.dtype)
        self._patches[rows] = features.patches.to("cpu", self.dtype)
        self._captions += captions
        self.count += len(features.cls)

    def finish(self) -> FeatureSet:
        """The features so far.

        Raises:
            InputError: there are none.
        """
        if self._cls is None or self._patches is None:
            raise InputError("no readable image in data.shards")
        return FeatureSet(self._cls[: self.count], self._patches[: self.count], self._grid, self._captions)
