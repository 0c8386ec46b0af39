"""Run a segmenter over a benchmark."""

import os
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from torch import Tensor

from simzss.data.benchmark import IGNORE, Benchmark
from simzss.data.images import save_image
from simzss.data.settings import Background
from simzss.distributed import gather_values, raise_on_all_ranks
from simzss.errors import DataError
from simzss.evaluation.counts import Counts
from simzss.evaluation.ledger import Entry, Ledger, classes_key, plain_regions, read_regions
from simzss.evaluation.metrics import ConfusionMatrix, SeenScores, count_pixels, dense, scores, seen_scores, sparse
from simzss.evaluation.photos import LoadedImage, benchmark_key, measured
from simzss.evaluation.results import ENGINEERED, PLAIN, NamesResult, SegmentationResult
from simzss.segmentation.prediction import Prediction
from simzss.segmentation.segmenter import Segmenter
from simzss.visualize import index_mask

Visitor = Callable[[str, Tensor], Path | None]
"""Called with the name and the predicted mask (H, W) of an image; returns the file that it wrote, if any."""


def evaluate(
    segmenter: Segmenter,
    benchmark: Benchmark,
    visit: Visitor | None = None,
    engineered: bool = False,
    num_workers: int = 0,
    ledger: Ledger | None = None,
) -> SegmentationResult:
    """Segment every image of this rank's share and score all ranks' pixels together.

    Args:
        segmenter: protocol; the classes are the benchmark's.
        benchmark: photos and masks.
        visit: called for each image of this rank with the mask predicted with the plain names.
        engineered: measure with the engineered names too, from the same features.
        num_workers: processes that decode and resize; 0 for this one.
        ledger: keeps each image, so that the same call goes on where it was stopped; None: nothing is kept.

    Returns:
        On every rank the scores of the whole set.

    Raises:
        InputError: a photo or a mask that cannot be used.
    """
    columns = {PLAIN: _Column(segmenter, benchmark)}
    if engineered and benchmark.engineered_groups is not None:
        columns[ENGINEERED] = _Column(segmenter, benchmark, engineered=True)

    def measure(image: LoadedImage, predictions: Sequence[Prediction]) -> Entry:
        tensors: dict[str, Tensor] = {}
        kinds: dict[str, str | None] = {}
        for key, prediction in zip(columns, predictions, strict=True):
            regions, kinds[key] = plain_regions(prediction.regions)
            counts = sparse(count_pixels(prediction.mask, image.mask, benchmark.num_labels, IGNORE))
            tensors |= {f"{key} {name}": value for name, value in (counts | regions).items()}
        written = None if visit is None else visit(benchmark.names[image.index], predictions[0].mask)
        return Entry(tensors, kinds, () if written is None else (written,))

    with raise_on_all_ranks():
        records = None
        if ledger is not None:
            own = {key: classes_key(segmenter, column.classifier, column.groups) for key, column in columns.items()}
            records = ledger.records(benchmark_key(segmenter, benchmark) | {"columns": own, "masks": visit is not None})
        classifiers = [column.classifier for column in columns.values()]
        for index, entry in measured(segmenter, benchmark, classifiers, measure, num_workers, records):
            for key, column in columns.items():
                column.add(index, entry, key)
    by_names = {key: column.result() for key, column in columns.items()}
    return SegmentationResult(by_names, len(benchmark), benchmark.settings.official_images)


class _Column:
    """Measurement of a benchmark with one list of class names."""

    def __init__(self, segmenter: Segmenter, benchmark: Benchmark, engineered: bool = False) -> None:
        self.segmenter = segmenter
        self.benchmark = benchmark
        self.groups, rule = classes_of(segmenter, benchmark, engineered)
        self.classifier = segmenter.classifier(self.groups, rule)
        self.metric = ConfusionMatrix(benchmark.num_labels, len(benchmark))
        self.regions: Any = None

    def add(self, index: int, entry: Entry, key: str) -> None:
        """Count an image, of whose entry the tensors that begin with `key` are this column's."""
        prefix = f"{key} "
        own = {name.removeprefix(prefix): value for name, value in entry.tensors.items() if name.startswith(prefix)}
        counts = {name: own.pop(name) for name in ("cells", "pixels")}
        self.metric.update(dense(counts, self.metric.matrix.shape), index)
        regions = read_regions(own, entry.note[key])
        if regions is not None:
            self.regions = regions if self.regions is None else regions + self.regions

    def result(self) -> NamesResult:
        """Return the scores over all ranks."""
        matrix, per_image = (state.cpu() for state in self.metric.to(self.segmenter.device).compute())
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


def mask_writer(folder: Path, names: Sequence[str], num_classes: int) -> Visitor:
    """Return a visitor that writes each predicted index mask as `<image name>.png`.

    Args:
        folder: below which they go, whatever the names are.
        names: of all images.
        num_classes: K.

    Raises:
        DataError: a name that leads out of the folder.
    """
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"image {name!r}: its mask would be written outside {folder}")

    def write(name: str, mask: Tensor) -> Path:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(path, index_mask(mask.numpy(), num_classes=num_classes))
        return path

    return write
