"""Run a segmenter over a benchmark."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simzss.data.benchmark import IGNORE, Benchmark, Example
from simzss.distributed import rank, world_size
from simzss.evaluation.metrics import ConfusionMatrix, scores
from simzss.segmentation.background import Background
from simzss.segmentation.segmenter import Prediction, Segmenter
from simzss.visualize import index_mask

log = logging.getLogger(__name__)

Visitor = Callable[[Example, Prediction], None]


def evaluate(segmenter: Segmenter, benchmark: Benchmark, visit: Visitor | None = None) -> dict[str, Any]:
    """Segment every image of this rank's share and score all ranks' pixels together.

    Args:
        segmenter: its classes are set to the benchmark's here.
        benchmark: photos and masks.
        visit: called with each example and its prediction, to keep masks or overlays.

    Returns:
        `mIoU`, `aAcc`, `per_class` in per cent, `images`, `protocol`; on every rank the scores of the whole set.
    """
    background = Background(**_tuples(benchmark.config.background))
    segmenter.set_classes(benchmark.class_groups, background)
    metric = ConfusionMatrix(benchmark.num_labels, IGNORE).to(segmenter.device)
    # range(rank, n, world) visits each image exactly once; a DistributedSampler would repeat some.
    for index in range(rank(), len(benchmark), world_size()):
        example = benchmark[index]
        prediction = segmenter.predict(example.image)
        metric.update(prediction.mask.to(segmenter.device), example.mask.to(segmenter.device))
        if visit is not None:
            visit(example, prediction)
    result = scores(metric.compute().cpu(), segmenter.class_names)
    return result | {"images": len(benchmark), "protocol": segmenter.describe()}


def mask_writer(folder: Path, num_classes: int) -> Visitor:
    """A visitor that writes each predicted index mask as `<image name>.png`."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(example: Example, prediction: Prediction) -> None:
        index_mask(prediction.mask.numpy(), num_classes=num_classes).save(folder / f"{example.name}.png")

    return write


def _tuples(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
