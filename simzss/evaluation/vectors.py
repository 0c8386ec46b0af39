"""Unit vectors of whole images and exact ranks among vectors: what retrieval and classification share."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simzss.data.images import decode_image
from simzss.data.shards import Skipped, summarise_skipped
from simzss.data.transforms import WholeImage
from simzss.device import best_device, resolve_precision
from simzss.distributed import gather_values, rank, total, world_size
from simzss.errors import DataError
from simzss.models.simzss import SimZSS
from simzss.progress import progress

log = logging.getLogger(__name__)

# Similarities held at a time: 64 MB in float64, and a few masks of an eighth of that.
_CELLS = 2**23
_GRID = 2.0**25


@dataclass(frozen=True)
class ImageVectors:
    """Unit vectors of this rank's readable images.

    Attributes:
        index: (b,) int64 indices into the list of names.
        vectors: (b, D) float32.
        skipped: unreadable images of all ranks, by name, in the order of the names.
    """

    index: Tensor
    vectors: Tensor
    skipped: tuple[Skipped, ...]


def place_model(model: SimZSS, precision: str, device: torch.device | None) -> tuple[torch.device, str]:
    """Move the model and round its backbone as `Segmenter` does; return device and resolved precision.

    Args:
        model: moved in index, put into evaluation mode.
        precision: `auto`, `bf16-mixed`, `32-true`.
        device: None for the accelerator when there is one.

    Raises:
        ConfigError: full precision after the weights were rounded.
    """
    device = device if device is not None else best_device()
    precision = resolve_precision(precision, device)
    model.to(device).eval()
    model.backbone.use_precision(precision)
    return device, precision


def protocol(model: SimZSS, limit: int | None, precision: str, **own: Any) -> dict[str, Any]:
    """Return the protocol of a task on whole images as recorded with its result, between common values its `own`."""
    images = {"image": "whole, squashed", "image_size": model.backbone.image_size}
    return images | own | {"ties": "count against", "limit": limit, "precision": precision}


@torch.no_grad()
def image_vectors(
    model: SimZSS, root: Path, names: Sequence[str], *, device: torch.device, batch_size: int, num_workers: int
) -> ImageVectors:
    """Encode this rank's share of the images as normalised class tokens, each squashed whole as for cached features.

    Args:
        model: on `device`.
        root: folder of the images.
        names: file paths below it; rank r of w takes every w-th from the r-th on, each exactly once.
        device: where the model is.
        batch_size: images through the backbone at a time, on this rank.
        num_workers: decoding processes of this rank; 0 decodes in this process.

    Raises:
        DataError: not one image of any rank can be read.
    """
    mine = range(rank(), len(names), world_size())
    loader = DataLoader(
        _Images(root, names, mine, model.backbone.image_size),
        batch_size=batch_size,
        collate_fn=_collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        # A generator of its own, or the loader draws its worker seed from a run's random stream.
        generator=torch.Generator(),
        multiprocessing_context="fork" if num_workers else None,
    )
    index: list[int] = []
    vectors = [torch.empty(0, model.backbone.width, device=device)]
    skipped: list[tuple[int, Skipped]] = []
    for block in progress(loader, len(mine), "images", count=_Block.__len__):
        skipped += block.skipped
        if block.index:
            index += block.index
            vectors.append(model.encode_image(block.images.to(device, non_blocking=True)).cls)
    everyone = sorted((entry for share in gather_values(skipped) for entry in share), key=lambda entry: entry[0])
    reasons = tuple(record for _, record in everyone)
    if len(reasons) == len(names):
        first = f"; first: {reasons[0].key}: {reasons[0].reason}" if reasons else ""
        raise DataError(f"none of the {len(names)} images of {root} can be read{first}")
    if reasons and rank() == 0:
        log.warning("%s", summarise_skipped(reasons))
    return ImageVectors(torch.tensor(index, dtype=torch.long, device=device), torch.cat(vectors), reasons)


def gather_by_index(rows: Tensor, index: Tensor, count: int) -> Tensor:
    """Gather all ranks' rows by their indices, on every rank; rows that no rank has are zero.

    Args:
        rows: (b, …) of this rank; another rank may have more or none.
        index: (b,) their indices, each of which only one rank has.
        count: n.

    Returns:
        (n, …).
    """
    placed = rows.new_zeros(count, *rows.shape[1:])
    placed[index] = rows
    return total(placed)


def ranks(queries: Tensor, owners: Tensor, gallery: Tensor, gallery_owners: Tensor) -> Tensor:
    """Rank each query's own best gallery entry by cosine, ties counted against it.

    An entry is a query's own if their owners are equal. The rank is 1 + the others' entries that are better + those
    that are equal, so that a model which gives everything the same vector finds nothing.

    Args:
        queries: (Q, D) unit vectors.
        owners: (Q,).
        gallery: (G, D) unit vectors.
        gallery_owners: (G,).

    Returns:
        (Q,) int64, from 1; 1 + G for a query that owns nothing.
    """
    gallery = _on_grid(gallery)
    owners, gallery_owners = owners.to(gallery.device), gallery_owners.to(gallery.device)
    rows = max(1, _CELLS // max(1, len(gallery)))
    found = []
    for chunk, chunk_owners in zip(queries.split(rows), owners.split(rows), strict=True):
        similarity = _on_grid(chunk) @ gallery.T
        other = chunk_owners[:, None] != gallery_owners
        best = similarity.masked_fill(other, -torch.inf).amax(dim=1, keepdim=True)
        # "not worse" is not ">=" where a broken model gives NaN: it must come last, not first.
        found.append(1 + (other & ~(similarity < best)).sum(dim=1))
    return torch.cat(found)


def _on_grid(vectors: Tensor) -> Tensor:
    """Round unit vectors to multiples of 2**-25 (float32 has 24 bits), in float64.

    Products are then multiples of 2**-50 and every partial sum of a cosine fits the 53 bits of a float64: cosines have
    no rounding error, so that equal vectors tie whatever the order in which a matrix product adds. In float32 the last
    columns of a product, which other code computes, differ from the same columns further left.
    """
    if vectors.device.type == "mps":  # it has no float64
        vectors = vectors.cpu()
    return (vectors.double() * _GRID).round() / _GRID


@dataclass(frozen=True)
class _Block:
    """Some images: indices and (b, 3, S, S) uint8 of those that are readable, indices and reasons of the others."""

    index: list[int]
    images: Tensor
    skipped: list[tuple[int, Skipped]]

    def __len__(self) -> int:
        return len(self.index) + len(self.skipped)

    def pin_memory(self) -> "_Block":
        """Pin the images; the loader calls this."""
        return _Block(self.index, self.images.pin_memory(), self.skipped)


class _Images(Dataset[tuple[int, Tensor | Skipped]]):
    """Decode some of a list of images."""

    def __init__(self, root: Path, names: Sequence[str], indices: Sequence[int], size: int) -> None:
        self.root = root
        self.names = names
        self.indices = indices
        self.transform = WholeImage(size)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[int, Tensor | Skipped]:
        index = self.indices[item]
        name = self.names[index]
        try:
            return index, self.transform(decode_image((self.root / name).read_bytes()))
        except OSError as error:
            return index, Skipped(name, f"unreadable file: {error.strerror or error}")
        except ValueError as error:
            return index, Skipped(name, str(error))


def _collate(records: list[tuple[int, Tensor | Skipped]]) -> _Block:
    images = [(index, record) for index, record in records if isinstance(record, Tensor)]
    skipped = [(index, record) for index, record in records if isinstance(record, Skipped)]
    stacked = torch.stack([image for _, image in images]) if images else torch.empty(0, dtype=torch.uint8)
    return _Block([index for index, _ in images], stacked, skipped)
