"""Search of the background threshold that suits a model, on some images, checked on the others."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from simzss.data.benchmark import IGNORE, Benchmark
from simzss.distributed import total
from simzss.errors import DataError
from simzss.evaluation.metrics import class_counts, class_ious
from simzss.evaluation.results import ENGINEERED, ThresholdResult
from simzss.evaluation.segmentation import classes_of, load_images
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.prediction import MapScores
from simzss.segmentation.segmenter import Segmenter

CANDIDATES = torch.arange(1, 100) / 100
"""Thresholds that are tried: 0.01 to 0.99."""


def search_threshold(
    segmenter: Segmenter, benchmark: Benchmark, names: str, share: float, seed: int, num_workers: int = 0
) -> ThresholdResult:
    """Compute mIoU at every candidate threshold, from one pass over the images.

    Args:
        segmenter: protocol; the classes are the benchmark's.
        benchmark: a set with a background class.
        names: `plain` or `engineered`.
        share: of the images, drawn by `seed`, on which the best threshold is chosen; the others check it.
        seed: of the draw.
        num_workers: processes that decode and resize.

    Raises:
        DataError: no background class, fewer than two images, no engineered names.
    """
    groups, rule = classes_of(segmenter, benchmark, engineered=names == ENGINEERED)
    if not rule.present:
        raise DataError(f"benchmark {benchmark.settings.name} has no background class, so no threshold")
    if len(benchmark) < 2:
        raise DataError(f"benchmark {benchmark.settings.name} has {len(benchmark)} image, a search needs two")
    kind = "both" if rule.has_words else "threshold"
    classifier = segmenter.classifier(groups, rule.replace(kind=kind, threshold=float(CANDIDATES[0])))
    count = min(len(benchmark) - 1, max(1, round(share * len(benchmark))))
    chosen = set(random.Random(seed).sample(range(len(benchmark)), count))

    histograms = _histograms(segmenter, benchmark, classifier, chosen, num_workers)
    search, check = (torch.stack([_miou(part, index) for index in range(len(CANDIDATES))]) for part in histograms)
    best = int(search.argmax())
    present = int((CANDIDATES - rule.threshold).abs().argmin()) if rule.has_threshold else None
    return ThresholdResult(
        threshold=round(float(CANDIDATES[best]), 2),
        names=names,
        miou_chosen=float(search[best]),
        miou_checked=float(check[best]),
        miou_configured=None if present is None else float(check[present]),
        images_chosen=len(chosen),
        images_checked=len(benchmark) - len(chosen),
        curve=dict(zip(CANDIDATES.tolist(), search.tolist(), strict=True)),
        protocol=segmenter.describe(classifier),
    )


@dataclass(frozen=True)
class _Codes:
    """A rule that gives label and confidence in one integer: `K * (candidates at or below the confidence) + label`."""

    classifier: Classifier
    prunable: bool = False

    def decide(self, scores: Tensor, rows: Tensor | None = None) -> Tensor:
        label, confidence = self.classifier.decide_with_confidence(scores, rows)
        assert confidence is not None
        candidates = CANDIDATES.to(confidence)
        return torch.bucketize(confidence, candidates, right=True) * len(self.classifier.names) + label

    def logits(self, scores: Tensor) -> Tensor:
        return self.classifier.logits(scores)


def _histograms(
    segmenter: Segmenter, benchmark: Benchmark, classifier: Classifier, chosen: set[int], num_workers: int
) -> tuple[Tensor, Tensor]:
    """Count pixels (T + 1, K, K) by confidence, truth and label, of the chosen images and of the others."""
    count = len(classifier.names)
    shape = (len(CANDIDATES) + 1, count, count)
    parts = [torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)]
    for images in load_images(benchmark, segmenter, num_workers):
        predictions = segmenter.predict_prepared([image.photo for image in images], [classifier])
        for image, (found,) in zip(images, predictions, strict=True):
            found_scores = found.score()
            assert isinstance(found_scores, MapScores)  # nothing refines here
            codes = found_scores.map.labels(_Codes(classifier)).cpu()
            counted = image.mask != IGNORE
            truth, codes = image.mask[counted].long(), codes[counted]
            flat = (codes // count * count + truth) * count + codes % count
            parts[image.index not in chosen] += torch.bincount(flat, minlength=parts[0].numel()).view(shape)
    return total(parts[0].to(segmenter.device)).cpu(), total(parts[1].to(segmenter.device)).cpu()


def _miou(histogram: Tensor, index: int) -> Tensor:
    """Compute mIoU in per cent with candidate `index`: what is less confident goes to class 0."""
    matrix = histogram[index + 1 :].sum(dim=0)
    matrix[:, 0] += histogram[: index + 1].sum(dim=(0, 2))
    ious = class_ious(class_counts(matrix))
    return ious[~ious.isnan()].mean().nan_to_num(0.0)
