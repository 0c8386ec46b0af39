"""The paired bootstrap: its intervals against plain loops and against what is known of them."""

import random

import numpy as np
import pytest
import torch

from simzss.evaluation import bootstrap as module
from simzss.evaluation.bootstrap import difference_interval
from tests.unit.reports.runs import counts_of

CLASSES = ("a", "b", "c", "d")
IMAGES = [f"{i:03d}" for i in range(23)]


def per_image(seed, images=IMAGES, **options):
    return counts_of(images, CLASSES, seed=seed, **options).per_image


def plain_miou(images):
    """mIoU of a resample in plain Python, from the definition."""
    ious = []
    for label in range(len(images[0])):
        hit, predicted, truth = (sum(image[label][part] for image in images) for part in range(3))
        if predicted + truth - hit:
            ious.append(100 * hit / (predicted + truth - hit))
    return sum(ious) / len(ious)


def test_against_a_plain_loop():
    """Another generator of random numbers: so many resamples that the intervals agree to a few per cent."""
    first, second = per_image(1, quality=0.4, absent=(2,)), per_image(2, quality=0.6, absent=(2,))
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    drawn = random.Random(0)
    differences = []
    for _ in range(3000):
        before, after = zip(*drawn.choices(pairs, k=len(pairs)), strict=True)
        differences.append(plain_miou(after) - plain_miou(before))
    expected = np.quantile(differences, [0.05, 0.95])
    found = difference_interval(first, second, 20_000, 3, 0.9)
    assert found == pytest.approx(expected.tolist(), abs=0.05 * (expected[1] - expected[0]))


def test_interval_depends_on_the_seed_not_on_the_block(monkeypatch):
    first, second = per_image(1), per_image(2)
    whole = difference_interval(first, second, 40, 0, 0.9)
    assert difference_interval(first, second, 40, 1, 0.9) != whole
    for size in (1, 8 * (3 * len(IMAGES) + 16 * len(CLASSES)) * 7):
        monkeypatch.setattr(module, "_BLOCK_BYTES", size)
        assert difference_interval(first, second, 40, 0, 0.9) == whole


def test_pairing_narrows_the_interval():
    # A run that is the other one, a little better on every image: the photos' own difficulty cancels out.
    first = per_image(1)
    better = first.clone()
    better[:, :, 0] += ((better[:, :, 1:].amin(dim=2) - better[:, :, 0]) * 0.1).long()
    low, high = difference_interval(first, better, 500, 0, 0.95)
    other = difference_interval(first, better[torch.randperm(len(IMAGES))], 500, 0, 0.95)
    assert low > 0 and high - low < 0.5 * (other[1] - other[0])


def test_equal_runs_and_a_single_image():
    counts = per_image(1)
    assert difference_interval(counts, counts.clone(), 100, 0, 0.95) == (0.0, 0.0)
    first, second = per_image(1, ["x"]), per_image(2, ["x"])
    difference = plain_miou(second.tolist()) - plain_miou(first.tolist())
    assert difference_interval(first, second, 20, 0, 0.95) == pytest.approx((difference, difference))
