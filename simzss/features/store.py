"""Opening a folder of cached features: checked, dealt to the processes of a run, and placed where they fit."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simzss.atomic import read_json
from simzss.concepts.concept import Caption
from simzss.data.shards import Skipped
from simzss.errors import InputError
from simzss.features.files import FeatureFile, FileRecord, hash_file, open_features
from simzss.features.folder import CacheFolder
from simzss.features.metadata import FORMAT_VERSION, CacheFacts, backbone_differences
from simzss.features.placement import choose, free_memory, local_processes, size_text
from simzss.features.quantise import pack
from simzss.features.stored import StoredFeatures
from simzss.models.backbone.base import Backbone
from simzss.models.feature_norm import FeatureNorm

log = logging.getLogger(__name__)

_AGAIN = "run simzss cache again"
_NAMED = 3  # files that an error names


class FeatureStore:
    """One process's share of a folder of features. Open it with `open`, then `place` it; until then it is mapped.

    Attributes:
        folder: as it was given.
        facts: what the features are.
        captions: all captions of the image of each row.
        skipped: what could not be read when the features were made, of all processes.
        total_images: of all processes.
        normalised: whether the features are the unit vectors that `normalise` made.
        placement: `device`, `host` or `mapped`.
    """

    def __init__(
        self,
        folder: Path,
        facts: CacheFacts,
        records: Sequence[FileRecord],
        files: Sequence[FeatureFile],
        skipped: tuple[Skipped, ...],
        total_images: int,
        world: int,
    ) -> None:
        self.folder = folder
        self.facts = facts
        self.captions: list[tuple[Caption, ...]] = [image.captions for file in files for image in file.texts]
        self.skipped = skipped
        self.total_images = total_images
        self.normalised = False
        self.placement = "mapped"
        self._records = records
        self._files = files
        self._world = world
        self._starts = torch.tensor([0, *accumulate(len(file.texts) for file in files)])
        self._block: dict[str, Tensor] | None = None  # (n, V, …) where the features lie in memory

    @classmethod
    def open(cls, folder: str | Path, rank: int = 0, world: int = 1) -> "FeatureStore":
        """Check a folder and map the share of one of `world` processes.

        Raises:
            InputError: no cache, an unfinished one, files that are missing or not those of the index, or fewer files
                than processes.
        """
        place = CacheFolder(Path(folder))
        facts, records, skipped = _read_index(place)
        wrong = [record.name for record in records if _size(place.path / record.name) != record.bytes]
        if wrong:
            more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            named = ", ".join(wrong[:_NAMED]) + more
            raise InputError(f"features {folder}: missing or not of their size: {named}; {_AGAIN}")
        total = sum(record.images for record in records)
        if total < world:
            raise InputError(f"features {folder}: {total} images are too few for {world} processes")
        mine: list[FileRecord] = []
        files: list[FeatureFile] = []
        for number, rows in share([record.images for record in records], rank, world):
            mine.append(records[number])
            files.append(_part(_open(place.path / records[number].name, records[number], facts), rows))
        return cls(Path(folder), facts, mine, files, skipped, total, world)

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def views(self) -> int:
        """V, pictures of an image."""
        return self.facts.views

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches."""
        return self.facts.grid

    @property
    def width(self) -> int:
        """D."""
        return self.facts.width

    @property
    def nbytes(self) -> int:
        """Size of this process's features."""
        return sum(tensor.nbytes for file in self._files for tensor in file.tensors.values())

    @property
    def on_accelerator(self) -> bool:
        """Whether the features are in the memory of an accelerator."""
        return self._block is not None and self._block["cls"].device.type != "cpu"

    def check_backbone(self, backbone: Backbone) -> None:
        """Refuse features that this backbone, with today's transform, would not make.

        Raises:
            InputError: says what differs, with both values.
        """
        if changed := backbone_differences(self.facts, backbone):
            raise InputError(
                f"features {self.folder} are not those of backbone {backbone.name}: {', '.join(changed)}; "
                "run simzss cache with this backbone into another folder"
            )

    def place(
        self, device: torch.device, placement: str = "auto", verify: bool = True, processes: int | None = None
    ) -> str:
        """Bring the features where they are used from, raw; returns `device`, `host` or `mapped`.

        Args:
            device: of the run. Without an accelerator `device` means host memory.
            placement: `device` copies all to it; `host` to page-locked memory where there is an accelerator; `mapped`
                leaves them in the files; `auto` takes the first of these that leaves room for the rest.
            verify: compare the SHA-256 of each file with the index meanwhile.
            processes: of the run on this machine, which share its memory; None for what torchrun says, else all.

        Raises:
            InputError: a file is corrupted, or the features do not fit.
        """
        memory = free_memory(device, processes or local_processes(self._world))
        chosen = choose(placement, self.nbytes, memory)
        self._block, self.normalised, self.placement = None, False, chosen
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            paths = [self.folder / record.name for record in self._records]
            found = [pool.submit(hash_file, path) for path in paths] if verify else []
            try:
                if chosen != "mapped":
                    self._block = self._load(device, chosen)
                for path, record, future in zip(paths, self._records, found, strict=False):
                    if (sha256 := future.result()) != record.sha256:
                        self._block = None
                        raise InputError(
                            f"{path} is corrupted (SHA-256 {sha256[:12]}…, the index says {record.sha256[:12]}…): "
                            f"remove it and {_AGAIN}"
                        )
            except OSError as error:
                raise InputError(f"features {self.folder} cannot be read: {error.strerror or error}") from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        log.info("%s", _where(chosen, len(self), self.nbytes, memory.device, memory.host))
        return chosen

    def rows(self, rows: Tensor, views: Tensor) -> StoredFeatures:
        """Features of some pictures, on the store's device.

        Args:
            rows: (B,) images, 0 to `len(self)` - 1.
            views: (B,) which picture of each, 0 to V - 1.
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
            places = (owners == owner).nonzero().flatten()
            chosen = (rows[places] - self._starts[owner]) * self.views + views[places]
            for name, tensor in self._files[owner].tensors.items():
                tensors[name][places] = tensor.flatten(0, 1).index_select(0, chosen)
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
        for part in pictures.split(block):
            unit = pack(norm(part.to(norm.patch_mean.device).features(torch.float32)), self.facts.storage)
            part.cls.copy_(unit["cls"])
            part.patches.copy_(unit["patches"])
            if part.scale is not None:
                part.scale.copy_(unit["scale"])
        self.normalised = True

    def _stored(self, tensors: dict[str, Tensor]) -> StoredFeatures:
        return StoredFeatures(tensors["cls"], tensors["patches"], tensors.get("scale"), self.grid)

    def _load(self, device: torch.device, placement: str) -> dict[str, Tensor]:
        """All of this process's features in one block of memory, (n, V, …) each."""
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
            raise InputError(f"placement={placement}: no room for {size_text(self.nbytes)}: {reason}") from error
        for file, start in zip(self._files, self._starts.tolist(), strict=False):
            for name, tensor in file.tensors.items():
                block[name][start : start + len(tensor)].copy_(tensor)
        return block


def share(images: Sequence[int], rank: int, world: int) -> list[tuple[int, slice]]:
    """Which rows of which files one of `world` processes gets: an equal part, to one image, of all of them in order."""
    total = sum(images)
    first, stop = total * rank // world, total * (rank + 1) // world
    starts = [0, *accumulate(images)]
    return [
        (index, slice(max(first - start, 0), min(stop - start, images[index])))
        for index, start in enumerate(starts[:-1])
        if start < stop and first < starts[index + 1]
    ]


def _part(file: FeatureFile, rows: slice) -> FeatureFile:
    """Some images of a file; views of its tensors."""
    tensors = {name: tensor[rows] for name, tensor in file.tensors.items()}
    return FeatureFile(tensors, file.texts[rows], file.skipped, file.metadata)


def _read_index(folder: CacheFolder) -> tuple[CacheFacts, list[FileRecord], tuple[Skipped, ...]]:
    path = folder.path
    if not path.is_dir():
        raise InputError(f"features {path} is no folder: make it with simzss cache")
    index = read_json(folder.index)
    if index is None and not folder.tasks.is_dir():
        raise InputError(f"features {path} holds no index.json: make it with simzss cache")
    if index is None:
        raise InputError(f"features {path} are not complete: {_AGAIN}")
    try:
        if index["facts"]["version"] != FORMAT_VERSION:
            raise InputError(
                f"features {path} are of format {index['facts']['version']}, this program reads {FORMAT_VERSION}"
            )
        facts = CacheFacts.from_json(index["facts"])
        records = [FileRecord.from_json(record) for record in index["files"]]
        skipped = tuple(Skipped(entry["key"], entry["reason"], entry["shard"]) for entry in index["skipped"])
        complete = index["complete"] is True and len(records) > 0
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"features {path}: index.json is broken: {_AGAIN}") from error
    if not complete:
        raise InputError(f"features {path} are not complete: {_AGAIN}")
    return facts, records, skipped


def _open(path: Path, record: FileRecord, facts: CacheFacts) -> FeatureFile:
    """A file of the index, mapped; with the tensors that the facts say."""
    file = open_features(path)
    shape = (record.images, facts.views)
    wanted: dict[str, tuple[int, ...]] = {
        "cls": (*shape, facts.width),
        "patches": (*shape, facts.patches, facts.width),
    }
    if facts.storage == "int8":
        wanted["scale"] = (*shape, facts.patches)
    found = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    if file.metadata.get("facts") != facts.digest or found != wanted or len(file.texts) != record.images:
        raise InputError(f"{path} is not the file of the index: remove it and {_AGAIN}")
    return file


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _where(placement: str, images: int, nbytes: int, device: int | None, host: int) -> str:
    """One line for the log: where the features are and why."""
    free = f"{size_text(host)} free in host memory for this process"
    if device is not None:
        free = f"{size_text(device)} free on the accelerator, {free}"
    place = {
        "device": "in the accelerator's memory",
        "host": "in host memory",
        "mapped": "read from the files as they are needed",
    }[placement]
    return f"features of {images} images, {size_text(nbytes)}, are {place} ({free})"
