"""Photos that a report shows: photo, truth and prediction side by side."""

import random
from dataclasses import dataclass

from simzss.data.benchmark import Benchmark
from simzss.evaluation.counts import Counts, ranked_images
from simzss.evaluation.segmentation import classes_of
from simzss.reports.report import Overlay
from simzss.segmentation.classifier import Classifier
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
        some: number of photos at random, the same ones every time.
        extremes: number of photos of the lowest and of the highest mIoU of their own.
    """
    scores = dict(ranked_images(counts))
    ranked = list(scores)
    extremes = min(extremes, len(ranked) // 2)
    chosen = random.Random(0).sample(benchmark.names, min(some, len(benchmark)))
    classifier = segmenter.classifier(*classes_of(segmenter, benchmark))

    def draw(names: list[str]) -> list[Overlay]:
        return [_draw(segmenter, classifier, benchmark, name, scores.get(name)) for name in names]

    return Gallery(draw(sorted(chosen)), draw(ranked[:extremes]), draw(ranked[::-1][:extremes]))


def _draw(segmenter: Segmenter, classifier: Classifier, benchmark: Benchmark, name: str, miou: float | None) -> Overlay:
    example = benchmark[benchmark.names.index(name)]
    prediction = segmenter.predict(example.image, classifier)
    truth = overlay(example.image, example.mask.numpy(), prediction.class_names, background=prediction.background_index)
    caption = "no pixel counts" if miou is None else f"mIoU {miou:.0f} over the classes in this photo"
    picture = side_by_side([example.image, truth, prediction.overlay()], ["photo", "truth", "prediction"])
    return Overlay(benchmark.settings.name, example.name, picture, caption)
