"""Unit vectors of whole images and exact ranks among vectors: what retrieval and classification share."""

import logging
from collections.abc import Iterator, Sequence
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
from simzss.distributed import gather_values, raise_on_all_ranks, rank, total, world_size
from simzss.errors import DataError, printable
from simzss.evaluation.ledger import Entry, Records, stamp_of, weights_key
from simzss.evaluation.photos import log_done, of_system, pickled, started
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
    model: SimZSS,
    root: Path,
    names: Sequence[str],
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    records: Records | None = None,
) -> ImageVectors:
    """Encode this rank's share of the images as normalised class tokens, each squashed whole as for cached features.

    Args:
        model: on `device`.
        root: folder of the images.
        names: file paths below it; rank r of w takes every w-th from the r-th on, each exactly once.
        device: where the model is.
        batch_size: images through the backbone at a time, on this rank.
        num_workers: decoding processes of this rank; 0 decodes in this process.
        records: of earlier runs, which gets the vectors of each batch; None: nothing is kept.

    Raises:
        DataError: not one image of any rank can be read.
    """
    found: dict[int, Tensor] = {}
    skipped: list[tuple[int, Skipped]] = []
    with raise_on_all_ranks():
        for index, entry in _encoded(model, root, names, device, batch_size, num_workers, records):
            if entry.note is None:
                found[index] = entry.tensors["cls"]
            else:
                skipped.append((index, Skipped(names[index], entry.note)))
    everyone = sorted((entry for share in gather_values(skipped) for entry in share), key=lambda entry: entry[0])
    reasons = tuple(record for _, record in everyone)
    if len(reasons) == len(names):
        first = f"; first: {reasons[0].key}: {reasons[0].reason}" if reasons else ""
        raise DataError(f"none of the {len(names)} images of {root} can be read{first}")
    if reasons and rank() == 0:
        log.warning("%s", printable(summarise_skipped(reasons)))
    own = sorted(found)
    vectors = torch.stack([found[index] for index in own]) if own else torch.empty(0, model.backbone.width)
    return ImageVectors(torch.tensor(own, dtype=torch.long, device=device), vectors.to(device), reasons)


def vectors_key(model: SimZSS, precision: str, names: Sequence[str]) -> dict[str, Any]:
    """Return what `image_vectors` depends on besides the files."""
    model_key = weights_key(model) | {"features": model.backbone.features, "image_size": model.backbone.image_size}
    return {"vectors": model_key, "precision": precision, "names": list(names)}


def _encoded(
    model: SimZSS,
    root: Path,
    names: Sequence[str],
    device: torch.device,
    batch_size: int,
    num_workers: int,
    records: Records | None,
) -> Iterator[tuple[int, Entry]]:
    """Yield number and entry of each image of this rank's share, those of earlier runs first.

    An entry has the vector `cls`, or as its note why the image cannot be used.
    """
    mine = range(rank(), len(names), world_size())
    stamps = {} if records is None else {names[index]: stamp_of(root / names[index]) for index in mine}
    done = {} if records is None else records.find(stamps)
    log_done("images", len(done), len(mine))
    yield from ((index, done[names[index]]) for index in mine if names[index] in done)
    # The batches of an undisturbed run: neighbours change the last bits of a vector.
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    left = [[index for index in batch if names[index] not in done] for batch in batches]
    loader: DataLoader[Any] = DataLoader(
        _Images(root, names, model.backbone.image_size),
        batch_sampler=[batch for batch in left if batch],
        collate_fn=pickled if num_workers else list,
        num_workers=num_workers,
        # A generator of its own, or the loader draws its worker seed from a run's random stream.
        generator=torch.Generator(),
        multiprocessing_context="fork" if num_workers else None,
    )
    for block in progress(started(loader), len(mine) - len(done), "images", count=len):
        if failures := [record for _, record in block if isinstance(record, OSError)]:
            raise failures[0]
        images = {index: image for index, image in block if isinstance(image, Tensor)}
        entries = {index: Entry({}, record.reason) for index, record in block if isinstance(record, Skipped)}
        if images:
            vectors = model.encode_image(torch.stack(list(images.values())).to(device)).cls.float().cpu()
            entries |= {index: Entry({"cls": vector}) for index, vector in zip(images, vectors, strict=True)}
        if records is not None:
            records.add(block[0][0], {names[i]: (stamps[names[i]], entry) for i, entry in entries.items()})
        yield from entries.items()


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


class _Images(Dataset[tuple[int, Tensor | Skipped | OSError]]):
    """Decode some of a list of images."""

    def __init__(self, root: Path, names: Sequence[str], size: int) -> None:
        self.root = root
        self.names = names
        self.transform = WholeImage(size)

    def __getitem__(self, index: int) -> tuple[int, Tensor | Skipped | OSError]:
        name = self.names[index]
        try:
            return index, self.transform(decode_image((self.root / name).read_bytes()))
        except (OSError, ValueError) as error:
            if failure := of_system(error):
                return index, failure
            reason = f"unreadable file: {error.strerror or error}" if isinstance(error, OSError) else str(error)
            return index, Skipped(name, reason)
