"""Points against loops."""

import math
from itertools import product

import pytest
import torch

from simzss.losses.points import point_sample, sample_labels, uncertain_points
from simzss.losses.settings import MaskLossSettings
from tests.support.loops import sampled
from tests.unit.losses.loops import noise

SETTINGS = MaskLossSettings(num_points=8)


def points_of(count: int, number: int = 11) -> torch.Tensor:
    """Random ones after the corners."""
    points = torch.rand(count, number, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points[:, :4] = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0]])
    return points


@pytest.mark.parametrize("shape", [(4, 7), (5, 3), (1, 6), (1, 1)])
def test_samples_are_bilinear_between_centres(shape):
    maps, points = noise(3, 2, *shape), points_of(3)
    several = point_sample(maps, points)
    assert several.shape == (3, 2, 11) and point_sample(maps[:, 1], points).equal(several[:, 1])
    for n, p in product(range(3), range(11)):
        across, down = points[n, p].tolist()
        expected = sampled(maps[n], down * shape[0] - 0.5, across * shape[1] - 0.5)
        torch.testing.assert_close(several[n, :, p], expected, rtol=0, atol=1e-12)


def test_labels_are_those_of_the_pixel():
    labels, images, points = torch.arange(30).view(2, 3, 5), torch.tensor([1, 0, 1]), points_of(3, 40)
    found = sample_labels(labels, images, points)
    for n, p in product(range(3), range(40)):
        across, down = points[n, p].tolist()
        assert found[n, p] == labels[images[n], min(2, math.floor(3 * down)), min(4, math.floor(5 * across))]
    assert sample_labels(labels, images[:0], points[:0]).shape == (0, 40)


@pytest.mark.parametrize(
    ("changes", "tried", "important"),
    [
        ({}, 24, 6),
        ({"importance_sample_ratio": 0.0}, 24, 0),
        ({"importance_sample_ratio": 1.0, "oversample_ratio": 1.0}, 8, 8),
        ({"num_points": 1, "importance_sample_ratio": 1.0, "oversample_ratio": 9.0}, 9, 1),
        ({"num_points": 10, "importance_sample_ratio": 0.3, "oversample_ratio": 1.5}, 15, 3),
    ],
)
@pytest.mark.parametrize("count", [3, 0])
def test_uncertain_points_are_those_nearest_to_zero(changes, tried, important, count):
    """By the seed: first those among which they are sought, then those anywhere."""
    maps, settings = noise(count, 4, 6).requires_grad_(), SETTINGS.replace(**changes)
    torch.manual_seed(0)
    points = uncertain_points(maps, settings)
    torch.manual_seed(0)
    candidates, anywhere = torch.rand(count, tried, 2), torch.rand(count, settings.num_points - important, 2)
    assert not points.requires_grad and points[:, important:].equal(anywhere)
    for n in range(count):
        places = candidates[n].tolist()
        sizes = [
            abs(float(sampled(maps[n].detach()[None], 4 * down - 0.5, 6 * across - 0.5))) for across, down in places
        ]
        nearest = sorted(range(tried), key=sizes.__getitem__)[:important]
        assert sorted(points[n, :important].tolist()) == sorted(places[i] for i in nearest)
