"""The paired bootstrap against a plain loop over the same resamples."""

import random
import statistics

import pytest
import torch

from simzss.evaluation import bootstrap as module
from simzss.evaluation.bootstrap import bootstrap_differences, percentile_interval, resamples
from tests.unit.reports.runs import counts_of

CLASSES = ("a", "b", "c", "d")
IMAGES = [f"{i:03d}" for i in range(23)]


def plain_miou(per_image, times):
    """mIoU of a resample in plain Python, from the definition."""
    ious = []
    for label in range(len(per_image[0])):
        hit, predicted, truth = (
            sum(n * image[label][part] for image, n in zip(per_image, times, strict=True)) for part in range(3)
        )
        if predicted + truth - hit:
            ious.append(100 * hit / (predicted + truth - hit))
    return sum(ious) / len(ious)


def test_against_a_plain_loop():
    first = counts_of(IMAGES, CLASSES, seed=1, quality=0.4, absent=(2,)).per_image
    second = counts_of(IMAGES, CLASSES, seed=2, quality=0.6, absent=(2,)).per_image
    found = bootstrap_differences(first, second, 50, seed=3)
    (drawn,) = resamples(len(IMAGES), 50, 3, rows=50)
    expected = [
        plain_miou(second.tolist(), times) - plain_miou(first.tolist(), times) for times in drawn.long().tolist()
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-10)
    assert found.std() > 0.1


def test_resamples_are_multinomial():
    (drawn,) = resamples(10, 20_000, 0, rows=20_000)
    assert drawn.shape == (20_000, 10) and drawn.dtype == torch.float64
    assert (drawn.sum(dim=1) == 10).all() and (drawn >= 0).all()
    assert torch.allclose(drawn.mean(dim=0), torch.ones(10, dtype=torch.float64), atol=0.04)
    assert torch.allclose(drawn.var(dim=0), torch.full((10,), 0.9, dtype=torch.float64), atol=0.05)
    assert len({tuple(row) for row in drawn[:100].tolist()}) > 95


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_draws_do_not_depend_on_the_block(rows):
    (whole,) = resamples(13, 20, 5, rows=20)
    assert torch.equal(torch.cat(list(resamples(13, 20, 5, rows))), whole)


def test_differences_do_not_depend_on_the_block(monkeypatch):
    first, second = (counts_of(IMAGES, CLASSES, seed=seed).per_image for seed in (1, 2))
    whole = bootstrap_differences(first, second, 40, seed=0)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)
    assert torch.equal(bootstrap_differences(first, second, 40, seed=0), whole)
    assert not torch.equal(bootstrap_differences(first, second, 40, seed=1), whole)


def test_equal_runs_differ_by_nothing():
    counts = counts_of(IMAGES, CLASSES, seed=1).per_image
    differences = bootstrap_differences(counts, counts.clone(), 100, seed=0)
    assert (differences == 0).all()
    assert percentile_interval(differences, 0.95) == (0.0, 0.0)


def test_pairing_narrows_the_interval():
    # A run that is the other one, a little better on every image: the photos' own difficulty cancels out.
    first = counts_of(IMAGES, CLASSES, seed=1)
    better = first.per_image.clone()
    better[:, :, 0] += ((better[:, :, 1:].amin(dim=2) - better[:, :, 0]) * 0.1).long()
    paired = bootstrap_differences(first.per_image, better, 500, seed=0)
    shuffled = bootstrap_differences(first.per_image, better[torch.randperm(len(IMAGES))], 500, seed=0)
    assert paired.std() < 0.5 * shuffled.std()
    assert percentile_interval(paired, 0.95)[0] > 0


def test_interval_is_that_of_the_values():
    values = list(range(101))
    random.Random(0).shuffle(values)
    found = percentile_interval(torch.tensor([*values, float("nan")]), 0.9)
    assert found == pytest.approx((5.0, 95.0))
    quantiles = statistics.quantiles(values, n=40, method="inclusive")
    assert percentile_interval(torch.tensor(values), 0.95) == pytest.approx((quantiles[0], quantiles[-1]))


def test_one_image_has_one_resample():
    first, second = (counts_of(["x"], CLASSES, seed=seed).per_image for seed in (1, 2))
    differences = bootstrap_differences(first, second, 20, seed=0)
    assert (differences == differences[0]).all()
