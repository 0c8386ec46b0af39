"""Which photos a report shows, and how: photo, truth and prediction side by side."""

import random
from dataclasses import dataclass

from simzss.data.benchmark import Benchmark
from simzss.evaluation.counts import Counts, ranked_images
from simzss.reports.report import Overlay
from simzss.segmentation.segmenter import Segmenter
from simzss.visualize import overlay, side_by_side


@dataclass(frozen=True)
class Gallery:
    """Drawings of a benchmark: some photos at random, those that came out worst and best."""

    random: list[Overlay]
    worst: list[Overlay]
    best: list[Overlay]


def draw_gallery(segmenter: Segmenter, benchmark: Benchmark, counts: Counts, some: int, extremes: int) -> Gallery:
    """Segment the chosen photos once more and draw them.

    Args:
        segmenter: as it measured.
        benchmark: photos and masks.
        counts: of each image, in the benchmark's order.
        some: photos at random, the same ones every time.
        extremes: photos of the lowest and of the highest mIoU of their own.
    """
    ranked = [name for name, _ in ranked_images(counts)]
    extremes = min(extremes, len(ranked) // 2)
    chosen = random.Random(0).sample(benchmark.names, min(some, len(benchmark)))
    segmenter.set_classes(benchmark.class_groups, segmenter.background_of(benchmark))
    scores = dict(ranked_images(counts))

    def draw(names: list[str]) -> list[Overlay]:
        return [_draw(segmenter, benchmark, name, scores.get(name)) for name in names]

    return Gallery(draw(sorted(chosen)), draw(ranked[:extremes]), draw(ranked[::-1][:extremes]))


def _draw(segmenter: Segmenter, benchmark: Benchmark, name: str, miou: float | None) -> Overlay:
    example = benchmark[benchmark.names.index(name)]
    prediction = segmenter.predict(example.image)
    names = prediction.class_names
    drawn = [
        overlay(example.image, mask.numpy(), names, background=segmenter.background_index)
        for mask in (example.mask, prediction.mask)
    ]
    caption = "no pixel counts" if miou is None else f"mIoU {miou:.0f} over the classes in this photo"
    picture = side_by_side([example.image, *drawn], ["photo", "truth", "prediction"])
    return Overlay(benchmark.config.name, example.name, picture, caption)
