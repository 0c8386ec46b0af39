"""Features of a frozen backbone, computed once and kept: on disk when asked, in memory for the run."""

import json
import uuid
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from simzss.concepts.concept import Caption
from simzss.data.shards import Skipped
from simzss.errors import InputError
from simzss.models.feature_norm import FeatureNorm
from simzss.models.features import ImageFeatures

CACHE_VERSION = 2
"""Of the file and of what its features are: counted up when either changes, so that no older file is taken."""


@dataclass
class FeatureSet:
    """Features of n images with all their captions.

    `cls` (n, D) and `patches` (n, N, D) in the dtype of the backbone's run, raw until `normalise`; `captions[i]`
    belongs to row i. `skipped` lists what could not be read when they were computed.
    """

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]
    captions: list[tuple[Caption, ...]]
    skipped: tuple[Skipped, ...] = ()

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
        """Write one safetensors file; whole or not at all.

        Raises:
            InputError: the disk is full, or the file cannot be written for another reason.
        """
        captions = [[caption.to_json() for caption in captions] for captions in self.captions]
        texts = json.dumps({"captions": captions, "skipped": [astuple(record) for record in self.skipped]})
        tensors = {
            "cls": self.cls.contiguous(),
            "patches": self.patches.contiguous(),
            # Not metadata: the header of a file may have 100 MB at most.
            "texts": torch.frombuffer(bytearray(texts.encode()), dtype=torch.uint8),
        }
        # Another run may be writing the same file.
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            save_file(tensors, partial, {"fingerprint": fingerprint, "grid": json.dumps(self.grid)})
            partial.replace(path)
        except Exception as error:
            # safetensors raises its own Rust-made type where the system would raise OSError.
            raise InputError(f"feature cache {path} cannot be written: {error}") from error
        finally:
            partial.unlink(missing_ok=True)

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
                tensors = {name: file.get_tensor(name) for name in ("cls", "patches", "texts")}
            height, width = json.loads(metadata["grid"])
            texts = json.loads(tensors["texts"].numpy().tobytes())
            captions = [tuple(Caption.from_json(record) for record in group) for group in texts["captions"]]
            skipped = tuple(Skipped(*record) for record in texts["skipped"])
        except InputError:
            raise
        except Exception as error:
            # safetensors raises its own Rust-made type on a broken file; the texts may be anything.
            raise InputError(f"feature cache {path} cannot be read: {error}") from error
        return cls(tensors["cls"], tensors["patches"], (height, width), captions, skipped)


class FeatureSetBuilder:
    """Collects features batch by batch into one preallocated block (no doubling of memory at the end).

    Args:
        capacity: images that are expected; the block grows when more come.
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
        self._skipped: list[Skipped] = []

    def add(self, features: ImageFeatures, captions: list[tuple[Caption, ...]]) -> None:
        """Append B images."""
        if self._cls is None or self._patches is None:
            self._cls = torch.empty(self.capacity, features.cls.shape[-1], dtype=self.dtype)
            self._patches = torch.empty(self.capacity, *features.patches.shape[1:], dtype=self.dtype)
            self._grid = features.grid
        rows = slice(self.count, self.count + len(features.cls))
        if rows.stop > self.capacity:
            self.capacity = max(rows.stop, self.capacity * 5 // 4)
            self._cls.resize_(self.capacity, *self._cls.shape[1:])
            self._patches.resize_(self.capacity, *self._patches.shape[1:])
        self._cls[rows] = features.cls.to("cpu", self.dtype)
        self._patches[rows] = features.patches.to("cpu", self.dtype)
        self._captions += captions
        self.count += len(features.cls)

    def skip(self, records: tuple[Skipped, ...]) -> None:
        """Note what could not be read."""
        self._skipped += records

    def finish(self) -> FeatureSet:
        """The features so far.

        Raises:
            InputError: there are none.
        """
        if self._cls is None or self._patches is None:
            raise InputError("no readable image in data.shards")
        cls, patches = self._cls[: self.count], self._patches[: self.count]
        return FeatureSet(cls, patches, self._grid, self._captions, tuple(self._skipped))
