"""The store of cached features: a folder that is checked, shared among the processes of a run, and placed in memory."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simzss.checksums import sha256_of
from simzss.concepts.concept import Caption
from simzss.errors import ConfigError, DataError
from simzss.features.files import FeatureFile, FileRecord
from simzss.features.folder import FeatureFolder
from simzss.features.index import AGAIN, FeatureIndex, open_indexed, read_index
from simzss.features.placement import Memory, choose, free_memory, local_processes, size_text
from simzss.features.quantise import pack
from simzss.features.settings import Placement
from simzss.features.stored import StoredFeatures
from simzss.models.backbone.base import Backbone
from simzss.models.feature_norm import FeatureNorm

log = logging.getLogger(__name__)


class FeatureStore:
    """One process's share of a folder of features. Open it with `open`, then `place` it; until then it is mapped.

    Attributes:
        folder: of the features.
        metadata: what made the features.
        captions: all captions of the image of each row.
        skipped: what could not be read when the features were made, of all processes.
        total_images: of all processes.
        normalised: the features are the unit vectors that `normalise` made.
        placement: `device`, `host` or `mapped`.
    """

    def __init__(
        self, folder: Path, index: FeatureIndex, records: Sequence[FileRecord], files: Sequence[FeatureFile], world: int
    ) -> None:
        self.folder = folder
        self.metadata = index.metadata
        self.captions: list[tuple[Caption, ...]] = [image.captions for file in files for image in file.texts]
        self.skipped = index.skipped
        self.total_images = sum(record.images for record in index.files)
        self.normalised = False
        self.placement: Placement = "mapped"
        self._records = records
        self._files = files
        self._world = world
        self._starts = torch.tensor([0, *accumulate(len(file.texts) for file in files)])
        self._block: dict[str, Tensor] | None = None  # (n, V, …) where the features lie in memory

    @classmethod
    def open(cls, folder: str | Path, rank: int = 0, world: int = 1) -> "FeatureStore":
        """Check a folder and map the share of one of `world` processes.

        Raises:
            DataError: no cache, an unfinished one, files that are missing or not those of the index, or fewer images
                than processes.
        """
        path = Path(folder)
        index = read_index(FeatureFolder(path))
        images = [record.images for record in index.files]
        if sum(images) < world:
            raise DataError(f"features {folder}: {sum(images)} images are too few for {world} processes")
        records: list[FileRecord] = []
        files: list[FeatureFile] = []
        for number, rows in share(images, rank, world):
            record = index.files[number]
            records.append(record)
            files.append(_slice(open_indexed(path / record.name, record, index.metadata), rows))
        return cls(path, index, records, files, world)

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def views(self) -> int:
        """Return V, the number of pictures of an image."""
        return self.metadata.views

    @property
    def nbytes(self) -> int:
        """Return the size of this process's features."""
        return sum(tensor.nbytes for file in self._files for tensor in file.tensors.values())

    @property
    def on_accelerator(self) -> bool:
        """Tell whether the features are in the memory of an accelerator."""
        return self._block is not None and self._block["cls"].device.type != "cpu"

    def check_backbone(self, backbone: Backbone) -> None:
        """Refuse features that this backbone, with today's transform, would not make.

        Raises:
            DataError: says what differs, with both values.
        """
        if changed := self.metadata.backbone_differences(backbone):
            raise DataError(
                f"features {self.folder} are not those of backbone {backbone.name}: {', '.join(changed)}; "
                "run simzss cache with this backbone into another folder"
            )

    def place(
        self, device: torch.device, placement: Placement = "auto", verify: bool = True, processes: int | None = None
    ) -> Placement:
        """Bring the raw features where they are used from; returns `device`, `host` or `mapped`.

        Args:
            device: of the run. Without an accelerator `device` means host memory.
            placement: `device` copies all to it; `host` to page-locked memory where there is an accelerator; `mapped`
                leaves them in the files; `auto` takes the first of these that leaves room for the rest.
            verify: compare the SHA-256 of each file with the index meanwhile.
            processes: of the run on this machine, which share its memory; None for what torchrun says, else all.

        Raises:
            ConfigError: the features do not fit.
            DataError: a file is corrupted.
        """
        memory = free_memory(device, processes or local_processes(self._world))
        chosen = choose(placement, self.nbytes, memory)
        self._block, self.normalised, self.placement = None, False, chosen
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            paths = [self.folder / record.name for record in self._records]
            found = [pool.submit(sha256_of, path) for path in paths] if verify else []
            try:
                block = None if chosen == "mapped" else self._load(device, chosen)
                for path, record, future in zip(paths, self._records, found, strict=False):
                    if (sha256 := future.result()) != record.sha256:
                        raise DataError(
                            f"{path} is corrupted (SHA-256 {sha256[:12]}…, the index says {record.sha256[:12]}…): "
                            f"remove it and {AGAIN}"
                        )
            except OSError as error:
                raise DataError(f"features {self.folder} cannot be read: {error.strerror or error}") from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        self._block = block
        log.info("%s", _describe_placement(chosen, len(self), self.nbytes, memory))
        return chosen

    def rows(self, rows: Tensor, views: Tensor) -> StoredFeatures:
        """Gather the features of some pictures, on the store's device.

        Args:
            rows: (B,) images, 0 to `len(self)` - 1.
            views: (B,) picture of each, 0 to V - 1.
        """
        if self._block is not None:
            device = self._block["cls"].device
            chosen = (rows * self.views + views).to(device, non_blocking=device.type != "cpu")
            return self._stored(
                {name: tensor.flatten(0, 1).index_select(0, chosen) for name, tensor in self._block.items()}
            )
        rows, views = rows.cpu(), views.cpu()
        owners = torch.bucketize(rows, self._starts[1:], right=True)
        tensors = {
            name: torch.empty(len(rows), *like.shape[2:], dtype=like.dtype)
            for name, like in self._files[0].tensors.items()
        }
        for owner in owners.unique().tolist():
            positions = (owners == owner).nonzero().flatten()
            chosen = (rows[positions] - self._starts[owner]) * self.views + views[positions]
            for name, tensor in self._files[owner].tensors.items():
                tensors[name][positions] = tensor.flatten(0, 1).index_select(0, chosen)
        return self._stored(tensors)

    @torch.no_grad()
    def normalise(self, norm: FeatureNorm, block: int = 64) -> None:
        """Replace the raw features by the unit vectors of `norm`, in place; a mapped store stays as it is.

        Args:
            norm: fitted.
            block: pictures at a time.
        """
        if self._block is None:
            return
        pictures = self._stored({name: tensor.flatten(0, 1) for name, tensor in self._block.items()})
        for some in pictures.split(block):
            unit = pack(norm(some.to(norm.patch_mean.device).features(torch.float32)), self.metadata.storage)
            some.cls.copy_(unit["cls"])
            some.patches.copy_(unit["patches"])
            if some.scale is not None:
                some.scale.copy_(unit["scale"])
        self.normalised = True

    def _stored(self, tensors: dict[str, Tensor]) -> StoredFeatures:
        return StoredFeatures(tensors["cls"], tensors["patches"], tensors.get("scale"), self.metadata.grid)

    def _load(self, device: torch.device, placement: Placement) -> dict[str, Tensor]:
        """Copy all of this process's features to one block of memory, (n, V, …) each."""
        options: dict[str, Any] = {"device": device} if placement == "device" else {}
        if placement == "host" and device.type != "cpu":
            options["pin_memory"] = True
        try:
            block = {
                name: torch.empty(len(self), *like.shape[1:], dtype=like.dtype, **options)
                for name, like in self._files[0].tensors.items()
            }
        except RuntimeError as error:  # as torch says that memory does not suffice
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"placement={placement}: no room for {size_text(self.nbytes)}: {reason}") from error
        for file, start in zip(self._files, self._starts.tolist(), strict=False):
            for name, tensor in file.tensors.items():
                block[name][start : start + len(tensor)].copy_(tensor)
        return block


def share(images: Sequence[int], rank: int, world: int) -> list[tuple[int, slice]]:
    """Return (file, rows of it) for one of `world` processes: an equal share, to one image, of all rows in order."""
    total = sum(images)
    first, stop = total * rank // world, total * (rank + 1) // world
    starts = [0, *accumulate(images)]
    return [
        (index, slice(max(first - start, 0), min(stop - start, images[index])))
        for index, start in enumerate(starts[:-1])
        if start < stop and first < starts[index + 1]
    ]


def _slice(file: FeatureFile, rows: slice) -> FeatureFile:
    """Return some images of a file; views of its tensors."""
    tensors = {name: tensor[rows] for name, tensor in file.tensors.items()}
    return FeatureFile(tensors, file.texts[rows], file.skipped, file.metadata)


def _describe_placement(placement: Placement, images: int, nbytes: int, memory: Memory) -> str:
    """Return one line for the log: where the features are and why."""
    free = f"{size_text(memory.host)} free in host memory for this process"
    if memory.device is not None:
        free = f"{size_text(memory.device)} free on the accelerator, {free}"
    where = {
        "device": "in the accelerator's memory",
        "host": "in host memory",
        "mapped": "read from the files as they are needed",
    }[placement]
    return f"features of {images} images, {size_text(nbytes)}, are {where} ({free})"
