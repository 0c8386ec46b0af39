from itertools import pairwise

import numpy as np
import pytest
import torch

from simzss.segmentation.inference.scores import ScoreMap
from simzss.segmentation.inference.windows import cut, windows


@pytest.mark.parametrize(
    ("length", "size", "stride", "starts"),
    [
        (448, 448, 224, [0]),
        (300, 448, 224, [0]),
        (449, 448, 224, [0, 1]),
        (672, 448, 224, [0, 224]),
        (673, 448, 224, [0, 224, 225]),
        (1000, 448, 224, [0, 224, 448, 552]),
        (7, 3, 1, [0, 1, 2, 3, 4]),
        (7, 3, 3, [0, 3, 4]),
        (6, 3, 3, [0, 3]),
        (1, 1, 1, [0]),
    ],
)
def test_starts(length, size, stride, starts):
    assert windows(length, size, stride) == starts


def test_windows_cover_every_pixel_and_stay_inside():
    for size in (1, 5, 8, 13):
        for stride in range(1, size + 1):
            for length in (1, 4, 8, 9, 13, 14, 27, 40):
                starts = windows(length, size, stride)
                end = min(size, length)
                covered = {pixel for start in starts for pixel in range(start, start + end)}
                assert covered == set(range(length)), (length, size, stride)
                assert starts == sorted(set(starts))
                assert all(after - before <= stride for before, after in pairwise(starts))
                # No window more than needed: without its last one the end would be bare.
                assert len(starts) == 1 or starts[-2] + end < length


def linear(crops: torch.Tensor) -> torch.Tensor:
    """Scores at full size that depend on place in the window as well as on the pixels."""
    place = torch.linspace(0, 1, crops.shape[-1], dtype=crops.dtype)
    weights = torch.tensor([[1.0, -2.0, 0.5], [0.25, 3.0, 1.0]], dtype=crops.dtype)
    return torch.einsum("kc,bchw->bkhw", weights, crops) + place


def interpolate(small: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, half-pixel centres, edges repeated: (K, h, w) -> (K, H, W) in float64."""

    def matrix(length: int, target: int) -> np.ndarray:
        at = np.clip((np.arange(target) + 0.5) * length / target - 0.5, 0, length - 1)
        low = np.minimum(np.floor(at).astype(int), max(length - 2, 0))
        rows = np.zeros((target, length))
        rows[np.arange(target), low] += 1 - (at - low)
        rows[np.arange(target), np.minimum(low + 1, length - 1)] += at - low
        return rows

    return matrix(small.shape[1], size[0]) @ small @ matrix(small.shape[2], size[1]).T


def plain(image: torch.Tensor, size: int, stride: int, score) -> np.ndarray:
    """Mean over windows, one at a time, in float64."""
    height, width = image.shape[1:]
    h, w = min(size, height), min(size, width)
    total, count = 0.0, np.zeros((height, width))
    for y in sorted({*range(0, height - h, stride), height - h}):
        for x in sorted({*range(0, width - w, stride), width - w}):
            crop = image[None, :, y : y + h, x : x + w].double()
            canvas = np.zeros((2, height, width))
            canvas[:, y : y + h, x : x + w] = interpolate(score(crop)[0].numpy(), (h, w))
            total = total + canvas
            count[y : y + h, x : x + w] += 1
    assert count.min() >= 1
    return total / count


def slide(image: torch.Tensor, size: int, stride: int, score, target: tuple[int, int] | None = None) -> ScoreMap:
    """The scores of an image's windows, at its own size or another."""
    places, crops = cut(image, size, stride)
    shape = (image.shape[1], image.shape[2])
    return ScoreMap(score(torch.stack(crops)), places, tuple(crops[0].shape[1:]), shape, target or shape)


class Best:
    """The index of the largest score."""

    def __init__(self, prunable: bool) -> None:
        self.prunable = prunable

    def decide(self, scores, rows=None):
        best = scores.argmax(dim=0)
        return best if rows is None else rows[best]


SHAPES = [((16, 16), 8, 4), ((17, 23), 8, 4), ((17, 23), 8, 8), ((17, 23), 9, 5), ((5, 23), 8, 4), ((6, 5), 8, 4)]


@pytest.mark.parametrize(("shape", "size", "stride"), SHAPES)
@pytest.mark.parametrize("pooled", [False, True])
def test_same_as_a_plain_loop(shape, size, stride, pooled):
    image = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))

    def score(crops):
        found = linear(crops)
        return torch.nn.functional.adaptive_avg_pool2d(found, (3, 2)) if pooled else found

    result = slide(image, size, stride, score).full()
    assert result.shape == (2, *shape)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), plain(image, size, stride, score), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", [(16, 16), (40, 9), (61, 80), (3, 5), (1, 1)])
@pytest.mark.parametrize(("shape", "size", "stride"), SHAPES)
def test_windows_are_averaged_before_the_last_interpolation(shape, size, stride, target):
    image = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    result = slide(image, size, stride, linear, target).full()
    expected = interpolate(plain(image, size, stride, linear), target)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "tile"),
    [((48, 48), 7), ((48, 48), 48), ((50, 97), 9), ((50, 97), 48), ((7, 5), 1), ((1, 1), 1), ((130, 31), 48),
     ((130, 31), 1000)],
)  # fmt: skip
@pytest.mark.parametrize("prunable", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_labels_of_tiles_are_those_of_the_whole(target, tile, prunable, whole):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(6, 40, 3, 3, generator=generator)
    scores = 0.1 * torch.nn.functional.interpolate(coarse, size=(5, 4), mode="bicubic")
    if whole:
        found = ScoreMap(scores[:1], None, (30, 30), (30, 30), target)
    else:
        found = ScoreMap(scores, [(y, x) for y in (0, 10) for x in (0, 5, 10)], (20, 20), (30, 30), target)
    expected = found.full().argmax(dim=0)
    assert torch.equal(found.labels(Best(prunable), tile), expected)
    assert target == (1, 1) or len(expected.unique()) > 4


@pytest.mark.parametrize("prunable", [False, True])
def test_no_more_than_a_tile_is_held(prunable):
    """171 classes of an image of 2048 by 1024 pixels at full resolution would be 359 million scores."""
    seen = []

    class Watching(Best):
        def decide(self, scores, rows=None):
            seen.append(scores.numel())
            return super().decide(scores, rows)

    scores = torch.randn(2, 171, 8, 8, generator=torch.Generator().manual_seed(0))
    found = ScoreMap(scores, [(0, 0), (0, 32)], (64, 64), (64, 96), (1024, 2048)).labels(Watching(prunable))
    assert found.shape == (1024, 2048) and max(seen) <= 171 * 48 * 48


@pytest.mark.parametrize("size", [(5, 4), (48, 48), (50, 97), (3, 2), (1, 1)])
def test_the_whole_image_is_interpolated_once_as_torch_does(size):
    scores = torch.randn(1, 7, 5, 4, generator=torch.Generator().manual_seed(0))
    found = ScoreMap(scores, None, (80, 64), (80, 64), size).full()
    expected = torch.nn.functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (9, 31), (5, 5), (33, 7)])
def test_constant_score_stays_constant(shape):
    def constant(crops):
        return torch.tensor([0.1, -7.3]).view(1, 2, 1, 1).expand(len(crops), 2, 4, 4)

    result = slide(torch.zeros(3, *shape), 8, 3, constant).full()
    expected = torch.tensor([0.1, -7.3]).view(2, 1, 1).expand(2, *shape)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)


def test_windows_are_cut_from_the_image_as_they_are():
    image = torch.arange(3 * 10 * 12, dtype=torch.uint8).view(3, 10, 12)
    places, crops = cut(image, 6, 4)
    assert places == [(y, x) for y in (0, 4) for x in (0, 4, 6)]
    for (y, x), crop in zip(places, crops, strict=True):
        assert torch.equal(crop, image[:, y : y + 6, x : x + 6])


def test_half_precision_scores_are_added_in_single_precision():
    image = torch.zeros(3, 40, 40)
    result = slide(image, 8, 1, lambda crops: torch.full((len(crops), 1, 8, 8), 0.1, dtype=torch.bfloat16)).full()
    value = float(torch.tensor(0.1, dtype=torch.bfloat16))
    torch.testing.assert_close(result, torch.full((1, 40, 40), value), rtol=1e-5, atol=0)
