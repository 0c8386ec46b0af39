"""Run a segmenter over a benchmark."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simzss.data.benchmark import IGNORE, Benchmark
from simzss.data.settings import Background
from simzss.distributed import gather_values, rank, world_size
from simzss.errors import DataError, InputError
from simzss.evaluation.counts import Counts
from simzss.evaluation.metrics import ConfusionMatrix, SeenScores, scores, seen_scores
from simzss.evaluation.results import ENGINEERED, PLAIN, NamesResult, SegmentationResult
from simzss.progress import progress
from simzss.segmentation.inference.prepare import Preparation, Prepared
from simzss.segmentation.prediction import Prediction
from simzss.segmentation.segmenter import Segmenter
from simzss.visualize import index_mask

Visitor = Callable[[str, Tensor], None]
"""Called with the name and the predicted mask (H, W) of an image."""


def evaluate(
    segmenter: Segmenter,
    benchmark: Benchmark,
    visit: Visitor | None = None,
    engineered: bool = False,
    num_workers: int = 0,
) -> SegmentationResult:
    """Segment every image of this rank's share and score all ranks' pixels together.

    Args:
        segmenter: protocol; the classes are the benchmark's.
        benchmark: photos and masks.
        visit: called for each image of this rank with the mask predicted with the plain names.
        engineered: measure with the engineered names too, from the same features.
        num_workers: processes that decode and resize; 0 for this one.

    Returns:
        On every rank the scores of the whole set.

    Raises:
        InputError: a photo or a mask that cannot be used.
    """
    columns = {PLAIN: _Column(segmenter, benchmark)}
    if engineered and benchmark.engineered_groups is not None:
        columns[ENGINEERED] = _Column(segmenter, benchmark, engineered=True)
    classifiers = [column.classifier for column in columns.values()]
    for images in load_images(benchmark, segmenter, num_workers):
        predictions = segmenter.predict_prepared([image.photo for image in images], classifiers)
        for image, found in zip(images, predictions, strict=True):
            for column, prediction in zip(columns.values(), found, strict=True):
                column.add(image, prediction)
            if visit is not None:
                visit(benchmark.names[image.index], found[0].mask)
    by_names = {key: column.result() for key, column in columns.items()}
    return SegmentationResult(by_names, len(benchmark), benchmark.settings.official_images)


class _Column:
    """Measurement of a benchmark with one list of class names."""

    def __init__(self, segmenter: Segmenter, benchmark: Benchmark, engineered: bool = False) -> None:
        self.segmenter = segmenter
        self.benchmark = benchmark
        self.classifier = segmenter.classifier(*classes_of(segmenter, benchmark, engineered))
        self.metric = ConfusionMatrix(benchmark.num_labels, IGNORE, len(benchmark))
        self.regions: Any = None

    def add(self, image: "LoadedImage", prediction: Prediction) -> None:
        """Count an image."""
        self.metric.update(prediction.mask, image.mask, image.index)
        if prediction.regions is not None:
            self.regions = prediction.regions if self.regions is None else prediction.regions + self.regions

    def result(self) -> NamesResult:
        """Return the scores over all ranks."""
        matrix, per_image = (state.cpu() for state in self.metric.compute())
        # The plain name stands for the class in every list, so that columns and runs can be compared.
        names = tuple(group[0] for group in self.benchmark.class_groups)
        if self.classifier.background.present:
            names = (self.classifier.names[0], *names)
        regions = [part for part in gather_values(self.regions) if part is not None]
        found = scores(matrix, names)
        return NamesResult(
            found,
            Counts(tuple(self.benchmark.names), names, per_image, matrix),
            self.segmenter.describe(self.classifier),
            reduce(add, regions).by_name(names) if regions else None,
            self._trained_with_masks(found.per_class),
        )

    def _trained_with_masks(self, per_class: dict[str, float | None]) -> SeenScores | None:
        """Return the classes that a mask head was trained on apart from the others."""
        head = self.segmenter.model.mask_head
        if head is None:
            return None
        known = {group[0] for group in self.benchmark.class_groups if not set(head.trained).isdisjoint(group)}
        background = self.classifier.names[0] if self.classifier.background.present else None
        return seen_scores({name: value for name, value in per_class.items() if name != background}, known)


def classes_of(
    segmenter: Segmenter, benchmark: Benchmark, engineered: bool = False
) -> tuple[tuple[tuple[str, ...], ...], Background]:
    """Return a benchmark's plain or engineered names of each class and the background rule for this kind of model.

    Raises:
        DataError: no engineered names.
    """
    groups = benchmark.engineered_groups if engineered else benchmark.class_groups
    if groups is None:
        raise DataError(f"benchmark {benchmark.settings.name} has no engineered names")
    return groups, benchmark.background(engineered, with_masks=segmenter.model.mask_head is not None)


def decoding_processes(asked: int | None) -> int:
    """Return `num_workers` as asked; None for one in four cores: on fewer, decoding takes turns with the model."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // 4


def mask_writer(folder: Path, num_classes: int) -> Visitor:
    """Return a visitor that writes each predicted index mask as `<image name>.png`."""

    def write(name: str, mask: Tensor) -> None:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        index_mask(mask.numpy(), num_classes=num_classes).save(path)

    return write


@dataclass(frozen=True)
class LoadedImage:
    """Image `index` of the benchmark: the `photo` as the models take it, and its `mask` (H, W) at full size."""

    index: int
    photo: Prepared
    mask: Tensor


class _Images(Dataset["LoadedImage | InputError"]):
    """Read, check and resize in worker processes. An error is handed over, to be raised with its own words."""

    def __init__(self, benchmark: Benchmark, prepare: Preparation) -> None:
        self.benchmark = benchmark
        self.prepare = prepare

    def __getitem__(self, index: int) -> "LoadedImage | InputError":
        try:
            example = self.benchmark[index]
            return LoadedImage(index, self.prepare(example.image), example.mask.to(torch.uint8))
        except InputError as error:
            return error


def load_images(benchmark: Benchmark, segmenter: Segmenter, num_workers: int) -> Iterator[list[LoadedImage]]:
    """Yield this rank's images, some batches at a time.

    Raises:
        DataError: a photo or a mask that cannot be used.
    """
    if benchmark.num_labels > IGNORE:
        raise DataError(f"benchmark {benchmark.settings.name} has {benchmark.num_labels} classes; {IGNORE} fit a mask")
    # range(rank, n, world) visits each image exactly once; a DistributedSampler would repeat some.
    mine = range(rank(), len(benchmark), world_size())
    loader: DataLoader[Any] = DataLoader(
        _Images(benchmark, segmenter.prepare),
        sampler=mine,
        batch_size=segmenter.chunk_size,
        collate_fn=list,
        num_workers=num_workers,
    )
    for images in progress(loader, len(mine), benchmark.settings.name, count=len):
        for image in images:
            if isinstance(image, InputError):
                raise image
        yield images
