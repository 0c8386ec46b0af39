"""`simzss threshold`: the background threshold that suits a model, found on some images and checked on the others."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from simzss import config as conf
from simzss.data.benchmark import IGNORE, Benchmark, BenchmarkConfig
from simzss.distributed import failing_together, process_group, rank, total
from simzss.errors import InputError, nearest
from simzss.evaluation.metrics import scores
from simzss.evaluation.segmentation import ENGINEERED, PLAIN, decoding_processes, load_images
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.prediction import MapScores
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import build_segmenter, load_configured, load_configured_sam
from simzss.segmentation.settings import check_settings as check_segmentation

CANDIDATES = torch.arange(1, 100) / 100
"""Thresholds that are tried: 0.01 to 0.99."""


def run_threshold(config: DictConfig) -> dict[str, Any]:
    """Search as configured, write `threshold.json` and return its content.

    Raises:
        InputError: anything wrong with model, benchmark or configuration.
    """
    conf.require_complete(config)
    plain: dict[str, Any] = conf.to_plain(config)
    check_settings(plain)
    check_segmentation(plain)
    output = Path(plain["output_dir"])
    with process_group():
        with failing_together():
            benchmark = Benchmark(BenchmarkConfig(**plain["benchmark"]))
            model, settings = load_configured(plain)
            sam = load_configured_sam(plain)
            output.mkdir(parents=True, exist_ok=True)
        segmenter = build_segmenter(plain, model, plain["readout"] or settings["readout"], sam, benchmark.config)
        found = search_threshold(
            segmenter,
            benchmark,
            plain["names"],
            plain["share"],
            plain["seed"],
            decoding_processes(plain["num_workers"]),
        )
        if rank() == 0:
            text = json.dumps({benchmark.config.name: found}, indent=2)
            (output / "threshold.json").write_text(text + "\n", encoding="utf-8")
    return found


def check_settings(plain: Mapping[str, Any]) -> None:
    """Refuse values that no search could use.

    Raises:
        InputError: names the key.
    """
    if plain["names"] not in (PLAIN, ENGINEERED):
        raise InputError(f"names={plain['names']} is unknown; {nearest(plain['names'], (PLAIN, ENGINEERED))}")
    if not 0 < plain["share"] < 1:
        raise InputError(f"share={plain['share']} must be between 0 and 1")
    decoding_processes(plain["num_workers"])


def search_threshold(
    segmenter: Segmenter, benchmark: Benchmark, names: str, share: float, seed: int, num_workers: int = 0
) -> dict[str, Any]:
    """mIoU at every candidate threshold, from one pass over the images.

    Args:
        segmenter: how; the classes are the benchmark's.
        benchmark: one with a background class.
        names: `plain` or `engineered`.
        share: of the images, drawn by `seed`, on which the best threshold is chosen; the others check it.
        seed: of the draw.
        num_workers: processes that decode and resize.

    Returns:
        `threshold`; `mIoU` with it on the images it was chosen on and on the others; `mIoU_configured` on the others
        with the benchmark's present threshold (None without one); `curve` over the candidates on the chosen images.

    Raises:
        InputError: no background class, fewer than two images, no engineered names.
    """
    engineered = names == ENGINEERED
    groups = benchmark.engineered_groups if engineered else benchmark.class_groups
    if groups is None:
        raise InputError(f"benchmark {benchmark.config.name} has no engineered names")
    rule = segmenter.background_of(benchmark, engineered)
    if not rule.present:
        raise InputError(f"benchmark {benchmark.config.name} has no background class, so no threshold")
    if len(benchmark) < 2:
        raise InputError(f"benchmark {benchmark.config.name} has {len(benchmark)} image, a search needs two")
    kind = "both" if rule.has_words else "threshold"
    classifier = segmenter.classifier_of(groups, replace(rule, kind=kind, threshold=float(CANDIDATES[0])))
    count = min(len(benchmark) - 1, max(1, round(share * len(benchmark))))
    chosen = set(random.Random(seed).sample(range(len(benchmark)), count))

    histograms = _histograms(segmenter, benchmark, classifier, chosen, num_workers)
    search, check = (torch.stack([_miou(part, index) for index in range(len(CANDIDATES))]) for part in histograms)
    best = int(search.argmax())
    configured = int((CANDIDATES - rule.threshold).abs().argmin()) if rule.has_threshold else None
    return {
        "threshold": round(float(CANDIDATES[best]), 2),
        "names": names,
        "mIoU": {"chosen on": float(search[best]), "checked on": float(check[best])},
        "mIoU_configured": None if configured is None else float(check[configured]),
        "images": {"chosen on": len(chosen), "checked on": len(benchmark) - len(chosen)},
        "curve": {f"{value:.2f}": float(score) for value, score in zip(CANDIDATES, search, strict=True)},
        "protocol": segmenter.describe(classifier),
    }


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
    """(T + 1, K, K) pixels by confidence, truth and label, of the chosen images and of the others, over all ranks."""
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
    """mIoU in per cent with candidate `index`: what is less confident goes to class 0."""
    matrix = histogram[index + 1 :].sum(dim=0)
    matrix[:, 0] += histogram[: index + 1].sum(dim=(0, 2))
    found = scores(matrix, tuple(map(str, range(len(matrix)))))["mIoU"]
    return torch.tensor(0.0 if found is None else found, dtype=torch.float64)
