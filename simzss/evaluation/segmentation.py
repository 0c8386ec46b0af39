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
from simzss.distributed import gather_values, rank, world_size
from simzss.errors import InputError
from simzss.evaluation.counts import Counts
from simzss.evaluation.metrics import ConfusionMatrix, scores, seen_scores
from simzss.segmentation.inference.prepare import Preparation, Prepared
from simzss.segmentation.segmenter import Segmenter
from simzss.visualize import index_mask

PLAIN, ENGINEERED = "plain", "engineered"
Visitor = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Evaluation:
    """`result`: scores and protocol as `results.json` has them; `counts` by list of names (`plain`, `engineered`)."""

    result: dict[str, Any]
    counts: dict[str, Counts]


def evaluate(
    segmenter: Segmenter,
    benchmark: Benchmark,
    visit: Visitor | None = None,
    engineered: bool = False,
    num_workers: int = 0,
) -> Evaluation:
    """Segment every image of this rank's share and score all ranks' pixels together.

    Args:
        segmenter: how; the classes are the benchmark's.
        benchmark: photos and masks.
        visit: called with each image's name and predicted mask (H, W) beside the plain names.
        engineered: measure with the engineered names too, from the same features.
        num_workers: processes that decode and resize; 0 for this one.

    Returns:
        On every rank the scores of the whole set: `mIoU`, `aAcc`, `per_class` in per cent, `images`,
        `official_images`, `protocol`, and those of the `engineered` names; where a refinement asks about regions, what
        became of them: `regions`; of a head trained with masks its classes apart from others: `trained_with_masks`.

    Raises:
        InputError: a photo or a mask that cannot be used.
    """
    classifiers = {PLAIN: segmenter.classifier_of(benchmark.class_groups, segmenter.background_of(benchmark))}
    if engineered and benchmark.engineered_groups is not None:
        rule = segmenter.background_of(benchmark, engineered=True)
        classifiers[ENGINEERED] = segmenter.classifier_of(benchmark.engineered_groups, rule)
    regions: dict[str, Any] = dict.fromkeys(classifiers)
    metrics = {key: ConfusionMatrix(benchmark.num_labels, IGNORE, len(benchmark)) for key in classifiers}
    for images in load_images(benchmark, segmenter, num_workers):
        predictions = segmenter.predict_prepared([image.photo for image in images], list(classifiers.values()))
        for image, found in zip(images, predictions, strict=True):
            for key, prediction in zip(classifiers, found, strict=True):
                metrics[key].update(prediction.mask, image.mask, image.index)
                if prediction.regions is not None:
                    regions[key] = prediction.regions + regions[key] if regions[key] else prediction.regions
            if visit is not None:
                visit(benchmark.names[image.index], found[0].mask)

    results, counts = {}, {}
    for key, classifier in classifiers.items():
        matrix, per_image = (state.cpu() for state in metrics[key].compute())
        # The plain name stands for the class in every list, so that columns and runs can be compared.
        names = tuple(group[0] for group in benchmark.class_groups)
        names = (classifier.names[0], *names) if classifier.background.present else names
        counts[key] = Counts(tuple(benchmark.names), names, per_image, matrix)
        results[key] = scores(matrix, names) | {"protocol": segmenter.describe(classifier)}
        asked = [part for part in gather_values(regions[key]) if part is not None]
        if asked:
            results[key]["regions"] = reduce(add, asked).by_name(names)
    if (head := segmenter.model.multires) is not None:
        known = {group[0] for group in benchmark.class_groups if not set(head.trained).isdisjoint(group)}
        for key, classifier in classifiers.items():
            objects = dict(results[key]["per_class"])
            if classifier.background.present:
                objects.pop(classifier.names[0])
            results[key]["trained_with_masks"] = seen_scores(objects, known)
    result = results[PLAIN] | {"images": len(benchmark), "official_images": benchmark.config.official_images}
    return Evaluation(result | ({ENGINEERED: results[ENGINEERED]} if ENGINEERED in results else {}), counts)


def decoding_processes(asked: int | None) -> int:
    """`num_workers` as asked, or one for every four cores: on fewer, decoding would only take turns with the model.

    Raises:
        InputError: a negative number.
    """
    if asked is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cores // 4
    if asked < 0:
        raise InputError(f"num_workers={asked} must be at least 0")
    return asked


def mask_writer(folder: Path, num_classes: int) -> Visitor:
    """A visitor that writes each predicted index mask as `<image name>.png`."""

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
    """What worker processes do: read, check and resize. An error is handed over, to be raised with its own words."""

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
    """This rank's images, some batches at a time.

    Raises:
        InputError: a photo or a mask that cannot be used.
    """
    if benchmark.num_labels > IGNORE:
        raise InputError(f"benchmark {benchmark.config.name} has {benchmark.num_labels} classes; {IGNORE} fit a mask")
    loader: DataLoader[Any] = DataLoader(
        _Images(benchmark, segmenter.prepare),
        # range(rank, n, world) visits each image exactly once; a DistributedSampler would repeat some.
        sampler=range(rank(), len(benchmark), world_size()),
        batch_size=segmenter.ahead,
        collate_fn=list,
        num_workers=num_workers,
    )
    for images in loader:
        for image in images:
            if isinstance(image, InputError):
                raise image
        yield images
