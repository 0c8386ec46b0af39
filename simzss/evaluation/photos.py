"""Photos of a benchmark through a segmenter, a few together, and what is kept of each."""

import errno
import hashlib
import json
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simzss.data.benchmark import IGNORE, Benchmark
from simzss.distributed import rank, world_size
from simzss.errors import DataError, InputError, printable
from simzss.evaluation.ledger import HINT, Entry, Records, stamp_of, weights_key
from simzss.progress import progress
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.inference.prepare import Preparation, Prepared
from simzss.segmentation.prediction import Prediction
from simzss.segmentation.segmenter import Segmenter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedImage:
    """Image `index` of the benchmark: the `photo` as the models take it, and its `mask` (H, W) at full size."""

    index: int
    photo: Prepared
    mask: Tensor


Measure = Callable[[LoadedImage, list[Prediction]], Entry]
"""Makes what is kept of an image from its predictions by each classifier."""


def measured(
    segmenter: Segmenter,
    benchmark: Benchmark,
    classifiers: Sequence[Classifier],
    measure: Measure,
    num_workers: int = 0,
    records: Records | None = None,
) -> Iterator[tuple[int, Entry]]:
    """Yield number and entry of each image of this rank's share: first those of earlier runs, then the others.

    Args:
        segmenter: protocol.
        benchmark: photos and masks.
        classifiers: of its classes.
        measure: called for each image that has no entry.
        num_workers: processes that decode and resize; 0 for this one.
        records: of earlier runs, which gets the entries; None: nothing is kept.

    Raises:
        DataError: photos or masks that cannot be used: with records after all others, which are kept.
    """
    name = printable(benchmark.settings.name)
    if benchmark.num_labels > IGNORE:
        raise DataError(f"benchmark {name} has {benchmark.num_labels} classes; {IGNORE} fit a mask")
    # range(rank, n, world) visits each image exactly once; a DistributedSampler would repeat some.
    mine = range(rank(), len(benchmark), world_size())
    stamps: dict[str, Any] = {}
    done: dict[str, Entry] = {}
    if records is not None:
        names = [benchmark.names[index] for index in mine]
        stamps = {name: stamp_of(benchmark.image_path(name), benchmark.mask_path(name)) for name in names}
        done = records.find(stamps)
        log_done(name, len(done), len(mine))
    yield from ((index, done[benchmark.names[index]]) for index in mine if benchmark.names[index] in done)
    # The chunks of an undisturbed run: see `pieces`.
    chunks = [mine[start : start + segmenter.chunk_size] for start in range(0, len(mine), segmenter.chunk_size)]
    left = [[index for index in chunk if benchmark.names[index] not in done] for chunk in chunks]
    broken: list[InputError] = []
    for images in progress(_load(benchmark, segmenter, left, num_workers), len(mine) - len(done), name, count=len):
        for image in images:
            if isinstance(image, InputError):
                if records is None:
                    raise image
                broken.append(image)
                log.warning("%s", printable(str(image)))
            elif isinstance(image, OSError):  # of the system, not of the image
                raise image
        for places, as_undisturbed in pieces(segmenter, [getattr(image, "photo", None) for image in images]):
            if not as_undisturbed:
                continue
            piece = [images[place] for place in places]
            predictions = segmenter.predict_prepared([image.photo for image in piece], classifiers)
            entries = [measure(image, found) for image, found in zip(piece, predictions, strict=True)]
            if records is not None:
                named = zip((benchmark.names[image.index] for image in piece), entries, strict=True)
                records.add(piece[0].index, {name: (stamps[name], entry) for name, entry in named})
            yield from ((image.index, entry) for image, entry in zip(piece, entries, strict=True))
    raise_broken(broken)


def pieces(segmenter: Segmenter, photos: Sequence[Prepared | None]) -> Iterator[tuple[list[int], bool]]:
    """Divide photos into those that go through the model together.

    What a photo's neighbours are changes the last bits of its scores. A run that goes on where another was stopped
    gives its bytes because both divide the same chunks of photos, and what is kept of a chunk are whole pieces.

    Args:
        segmenter: number of photos at a time, and whether only those of one shape share windows.
        photos: of a chunk, or those left of it, in order; None for one that cannot be used.

    Returns:
        Places of a piece, and whether these are together in a run that can use all photos too.
    """
    by_shape = segmenter.protocol.inference == "whole" and segmenter.model.mask_head is None
    groups: dict[object, list[int]] = {}
    for place, photo in enumerate(photos):
        if photo is not None:
            groups.setdefault(photo.pixels.shape if by_shape else None, []).append(place)
    first_lost = next((place for place, photo in enumerate(photos) if photo is None), None)
    size = segmenter.batch_size
    for places in groups.values():
        for start in range(0, len(places), size):
            piece = places[start : start + size]
            yield piece, first_lost is None or (len(piece) == size and piece[-1] < first_lost)


def log_done(name: str, done: int, count: int) -> None:
    """Tell where a run goes on."""
    if done:
        log.info("%s: goes on: %d of %d images are finished", name, done, count)


def raise_broken(broken: Sequence[InputError]) -> None:
    """Raise one error for all photos that cannot be used, after the others are finished."""
    if broken:
        more = f" ({len(broken) - 1} more are named above)" if len(broken) > 1 else ""
        raise DataError(f"{broken[0]}{more}; what is finished is kept: {HINT}")


def of_system(error: BaseException) -> OSError | None:
    """Return the system's error that an error comes from, where no file is at fault: too many are open, no memory."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            return OSError(seen.errno, seen.strerror)
        seen = seen.__cause__ or seen.__context__
    return None


def benchmark_key(segmenter: Segmenter, benchmark: Benchmark) -> dict[str, Any]:
    """Return what a measurement depends on besides class names, protocol and the files of the images."""
    names = hashlib.sha256(json.dumps(benchmark.names).encode()).hexdigest()
    settings = benchmark.settings.plain() | {"root": None}  # the files themselves are looked at
    return {"model": weights_key(segmenter.model), "benchmark": settings, "names": names}


class _Images(Dataset["LoadedImage | InputError | OSError"]):
    """Read, check and resize in worker processes. An error is handed over, to be raised with its own words."""

    def __init__(self, benchmark: Benchmark, prepare: Preparation) -> None:
        self.benchmark = benchmark
        self.prepare = prepare

    def __getitem__(self, index: int) -> LoadedImage | InputError | OSError:
        try:
            example = self.benchmark[index]
            return LoadedImage(index, self.prepare(example.image), example.mask.to(torch.uint8))
        except (InputError, OSError) as error:
            return of_system(error) or error


def _load(
    benchmark: Benchmark, segmenter: Segmenter, chunks: Sequence[list[int]], num_workers: int
) -> Iterator[list[Any]]:
    """Yield the images of each chunk, an error in place of one that cannot be used."""
    loader: DataLoader[Any] = DataLoader(
        _Images(benchmark, segmenter.prepare),
        batch_sampler=[chunk for chunk in chunks if chunk],
        collate_fn=pickled if num_workers else list,
        num_workers=num_workers,
    )
    return started(loader)


def started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the worker processes of a loader and yield its batches, which they have `pickled`.

    Raises:
        OSError: too few files may be open for the pipes to the workers.
    """
    # Tried beforehand: a loader that fails half started complains of itself when it goes.
    opened = []
    try:
        for _ in range(6 + 4 * loader.num_workers if loader.num_workers else 0):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: fewer workers need less") from error
    finally:
        for descriptor in opened:
            os.close(descriptor)
    yield from map(pickle.loads, loader) if loader.num_workers else loader


def pickled(batch: Any) -> bytes:
    """Pickle what a worker process made, itself trusted.

    Tensors alone would be handed over by file descriptors and shared memory: where either runs out, the process that
    waits for them waits for ever.
    """
    return pickle.dumps(batch, protocol=pickle.HIGHEST_PROTOCOL)
