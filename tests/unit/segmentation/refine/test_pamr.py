"""PAMR, against loops over pixels in float64."""

import math

import numpy as np
import pytest
import torch

from simzss.segmentation.refine import pamr as module
from simzss.segmentation.refine.pamr import affinity, pamr


def photo(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def probabilities(count: int, height: int, width: int, seed: int = 1) -> torch.Tensor:
    scores = torch.randn(count, height, width, generator=torch.Generator().manual_seed(seed))
    return (3 * scores).softmax(dim=0) if count > 1 else scores.sigmoid()


def plain(image: torch.Tensor, scores: torch.Tensor, iterations: int, dilations: tuple[int, ...]) -> np.ndarray:
    """Pixel by pixel in float64, as the authors' release defines it."""
    colours, values = image.double().numpy(), scores.double().numpy()
    height, width = colours.shape[1:]
    neighbours, weights = {}, {}
    for y in range(height):
        for x in range(width):
            square = [
                (min(max(y + dilation * i, 0), height - 1), min(max(x + dilation * j, 0), width - 1), i == j == 0)
                for dilation in dilations
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
            ]
            deviation = [np.std([colours[c, v, u] for v, u, _ in square], ddof=1) for c in range(3)]
            around = [(v, u) for v, u, centre in square if not centre]
            kernel = [
                -np.mean([abs(colours[c, y, x] - colours[c, v, u]) / (1e-8 + 0.1 * deviation[c]) for c in range(3)])
                for v, u in around
            ]
            likeness = [math.exp(value - max(kernel)) for value in kernel]
            neighbours[y, x] = around
            weights[y, x] = [value / sum(likeness) for value in likeness]
    for _ in range(iterations):
        following = np.zeros_like(values)
        for y, x in neighbours:
            for (v, u), weight in zip(neighbours[y, x], weights[y, x], strict=True):
                following[:, y, x] += weight * values[:, v, u]
        values = following
    return values


# Against the plain loop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "shape", "iterations", "dilations"),
    [
        (4, (13, 17), 3, (1, 2)),
        (1, (13, 17), 2, (3,)),
        (3, (9, 21), 10, (1, 2, 4)),
        (2, (15, 11), 2, (4, 1)),  # dilations in any order
        (2, (20, 18), 2, (8, 16)),
        (3, (5, 7), 4, (8, 16)),  # all beyond the image
        (2, (3, 30), 3, (2, 9)),  # beyond one side alone
        (2, (1, 6), 3, (1, 8)),
        (2, (7, 1), 3, (2,)),
        (2, (1, 1), 2, (1, 4)),
    ],
)
def test_same_as_a_plain_loop(count, shape, iterations, dilations):
    image, scores = photo(*shape), probabilities(count, *shape)
    refined = pamr(image, scores, iterations, dilations)
    assert refined.shape == scores.shape
    assert refined.dtype == torch.float32
    np.testing.assert_allclose(refined.numpy(), plain(image, scores, iterations, dilations), rtol=0, atol=1e-5)


def test_same_as_a_plain_loop_on_flat_regions_and_bytes():
    image = torch.zeros(3, 12, 15, dtype=torch.uint8)
    image[:, 4:, 6:] = torch.tensor([200, 30, 255], dtype=torch.uint8)[:, None, None]
    image[1, 2, 3] = 1
    scores = probabilities(3, 12, 15)
    refined = pamr(image, scores, 4, (1, 3))
    np.testing.assert_allclose(refined.numpy(), plain(image, scores, 4, (1, 3)), rtol=0, atol=1e-5)


def test_a_far_dilation_costs_no_memory():
    image, scores = photo(6, 5), probabilities(2, 6, 5)
    torch.testing.assert_close(pamr(image, scores, 2, (10**9,)), pamr(image, scores, 2, (5,)))


@pytest.mark.parametrize("name", ["CHUNK_BYTES", "TILE_BYTES"])
@pytest.mark.parametrize("budget", [1, 6000, 2**40])
def test_chunks_make_no_difference(monkeypatch, name, budget):
    image, scores = photo(19, 23), probabilities(7, 19, 23)
    expected = pamr(image, scores, 3, (2, 5))
    monkeypatch.setattr(module, name, budget)
    torch.testing.assert_close(pamr(image, scores, 3, (2, 5)), expected, rtol=0, atol=1e-6)


# Properties -------------------------------------------------------------------------------------------------------


def test_means_stay_between_what_they_are_made_of():
    """Weights of a pixel sum to one: constants stay, and so do sums of classes."""
    weights = affinity(photo(14, 9), (1, 2, 12))
    assert weights.shape == (24, 14, 9) and weights.min() >= 0
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(14, 9))
    scores = torch.tensor([0.2, 0.7, 0.1]).view(3, 1, 1).expand(3, 20, 25)
    torch.testing.assert_close(pamr(photo(20, 25), scores, 10, (8, 16)), scores, rtol=0, atol=1e-5)
    refined = pamr(photo(20, 25), probabilities(5, 20, 25), 10, (1, 2))
    assert refined.min() >= 0
    torch.testing.assert_close(refined.sum(dim=0), torch.ones(20, 25), rtol=0, atol=1e-5)


def test_ramp_over_a_flat_image_stays_away_from_its_ends():
    ramp = torch.linspace(0, 1, 40).expand(1, 30, 40)
    refined = pamr(torch.full((3, 30, 40), 0.3), ramp, 3, (1, 2))
    torch.testing.assert_close(refined[..., 6:-6], ramp[..., 6:-6], rtol=0, atol=1e-5)
    assert (refined[..., 0] > 0.01).all()  # at an end its repeated edge pulls
    assert refined.mean().item() == pytest.approx(0.5, abs=1e-5)


def test_scale_and_offset_of_the_colours_do_not_matter():
    image, scores = photo(17, 12), probabilities(3, 17, 12)
    gain, offset = torch.tensor([255.0, 4.0, 0.5]).view(3, 1, 1), torch.tensor([-3.0, 10.0, 0.0]).view(3, 1, 1)
    torch.testing.assert_close(pamr(image * gain + offset, scores, 3, (1, 4)), pamr(image, scores, 3, (1, 4)))


def test_a_strong_edge_attracts_and_separates():
    image = 0.02 * photo(32, 40)
    image[:, :, 20:] += 0.9
    scores = torch.full((2, 32, 40), 0.1)
    scores[0, :, :17], scores[1, :, 17:] = 0.9, 0.9  # three pixels off the edge
    labels = pamr(image, scores, 10, (1, 2, 4)).argmax(dim=0)
    assert (labels[:, :20] == 0).all() and (labels[:, 20:] == 1).all()
    side = (torch.arange(40) >= 20).float().expand(1, 32, 40)
    torch.testing.assert_close(pamr(image, side, 10, (1, 2)), side, rtol=0, atol=0.02)
    assert (pamr(torch.zeros(3, 32, 40), side, 10, (1, 2)) - side).abs().max() > 0.3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_computes_in_single_precision_and_changes_nothing(dtype):
    image, scores = photo(8, 9).requires_grad_(), probabilities(2, 8, 9).to(dtype).requires_grad_()
    before = image.detach().clone(), scores.detach().clone()
    refined = pamr(image, scores, 5, (1, 2))
    assert refined.dtype == torch.float32 and not refined.requires_grad
    torch.testing.assert_close(refined, pamr(image, scores.float(), 5, (1, 2)))
    assert torch.equal(image, before[0]) and torch.equal(scores, before[1])
