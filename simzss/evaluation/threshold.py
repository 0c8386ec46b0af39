"""Search of the background threshold that suits a model, on some images, checked on the others."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from simzss.data.benchmark import IGNORE, Benchmark
from simzss.distributed import raise_on_all_ranks, total
from simzss.errors import DataError
from simzss.evaluation.ledger import Entry, Ledger, Records, classes_key
from simzss.evaluation.metrics import class_counts, class_ious, dense, sparse
from simzss.evaluation.photos import LoadedImage, benchmark_key, measured
from simzss.evaluation.results import ENGINEERED, ThresholdResult
from simzss.evaluation.segmentation import classes_of
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.prediction import MapScores, Prediction
from simzss.segmentation.segmenter import Segmenter

CANDIDATES = torch.arange(1, 100) / 100
"""Thresholds that are tried: 0.01 to 0.99."""


def search_threshold(
    segmenter: Segmenter,
    benchmark: Benchmark,
    names: str,
    share: float,
    seed: int,
    num_workers: int = 0,
    ledger: Ledger | None = None,
) -> ThresholdResult:
    """Compute mIoU at every candidate threshold, from one pass over the images.

    Args:
        segmenter: protocol; the classes are the benchmark's.
        benchmark: a set with a background class.
        names: `plain` or `engineered`.
        share: of the images, drawn by `seed`, on which the best threshold is chosen; the others check it.
        seed: of the draw.
        num_workers: processes that decode and resize.
        ledger: keeps each image, so that the same call goes on where it was stopped; None: nothing is kept.

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

    with raise_on_all_ranks():
        records = None
        if ledger is not None:
            own = classes_key(segmenter, classifier, groups)
            records = ledger.records(benchmark_key(segmenter, benchmark) | {"candidates": CANDIDATES.tolist()} | own)
        histograms = _histograms(segmenter, benchmark, classifier, chosen, num_workers, records)
    histograms = tuple(total(part.to(segmenter.device)).cpu() for part in histograms)
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
    segmenter: Segmenter,
    benchmark: Benchmark,
    classifier: Classifier,
    chosen: set[int],
    num_workers: int,
    records: Records | None,
) -> tuple[Tensor, ...]:
    """Count this rank's pixels (T + 1, K, K) by confidence, truth and label: chosen images, and the others."""
    count = len(classifier.names)
    shape = (len(CANDIDATES) + 1, count, count)
    rule = _Codes(classifier)

    def measure(image: LoadedImage, predictions: list[Prediction]) -> Entry:
        found_scores = predictions[0].score()
        assert isinstance(found_scores, MapScores)  # nothing refines here
        codes = found_scores.map.labels(rule).cpu()
        counted = image.mask != IGNORE
        truth, codes = image.mask[counted].long(), codes[counted]
        flat = (codes // count * count + truth) * count + codes % count
        return Entry(sparse(torch.bincount(flat)))

    parts = (torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64))
    for index, entry in measured(segmenter, benchmark, [classifier], measure, num_workers, records):
        parts[index not in chosen].add_(dense(entry.tensors, shape))
    return parts


def _miou(histogram: Tensor, index: int) -> Tensor:
    """Compute mIoU in per cent with candidate `index`: what is less confident goes to class 0."""
    matrix = histogram[index + 1 :].sum(dim=0)
    matrix[:, 0] += histogram[: index + 1].sum(dim=(0, 2))
    ious = class_ious(class_counts(matrix))
    return ious[~ious.isnan()].mean().nan_to_num(0.0)
