"""Windows, and their scores at any size."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from simzss.segmentation.inference.scores import ScoreMap, WindowScores
from simzss.segmentation.inference.windows import cut, starts


@pytest.mark.parametrize(
    ("length", "size", "stride", "expected"),
    [
        (448, 448, 224, [0]),
        (300, 448, 224, [0]),
        (449, 448, 224, [0, 1]),
        (673, 448, 224, [0, 224, 225]),
        (1000, 448, 224, [0, 224, 448, 552]),
        (7, 3, 3, [0, 3, 4]),
        (6, 3, 3, [0, 3]),
        (1, 1, 1, [0]),
    ],
)
def test_starts(length, size, stride, expected):
    assert starts(length, size, stride) == expected


def test_windows_cover_every_pixel_and_stay_inside():
    for size in (1, 5, 8, 13):
        for stride in range(1, size + 1):
            for length in (1, 4, 8, 9, 13, 14, 27, 40):
                found, end = starts(length, size, stride), min(size, length)
                covered = {pixel for start in found for pixel in range(start, start + end)}
                assert covered == set(range(length)), (length, size, stride)
                assert found == sorted(set(found)) and all(b - a <= stride for a, b in pairwise(found))
                # No window more than needed: without its last one the end would be bare.
                assert len(found) == 1 or found[-2] + end < length


def test_windows_are_views_of_the_image():
    image = torch.arange(3 * 10 * 12, dtype=torch.uint8).view(3, 10, 12)
    windows = cut(image, 6, 4)
    assert windows.positions == [(y, x) for y in (0, 4) for x in (0, 4, 6)] and windows.shape == (6, 6)
    for (y, x), crop in zip(windows.positions, windows.crops, strict=True):
        assert torch.equal(crop, image[:, y : y + 6, x : x + 6])
        assert crop.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()


# Scores ---------------------------------------------------------------------------------------------------------------


def linear(crops: torch.Tensor) -> torch.Tensor:
    """Scores at full size that depend on the position in the window as well as on the pixels."""
    position = torch.linspace(0, 1, crops.shape[-1], dtype=crops.dtype)
    weights = torch.tensor([[1.0, -2.0, 0.5], [0.25, 3.0, 1.0]], dtype=crops.dtype)
    return torch.einsum("kc,bchw->bkhw", weights, crops) + position


def pooled(crops: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(linear(crops), (3, 2))


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


def by_loop(image: torch.Tensor, size: int, stride: int, score) -> np.ndarray:
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
    windows, shape = cut(image, size, stride), (image.shape[1], image.shape[2])
    scores = score(torch.stack(windows.crops))
    return WindowScores(scores, windows.positions, windows.shape, shape).at(target or shape)


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [((16, 16), 8, 4), ((17, 23), 8, 4), ((17, 23), 8, 8), ((17, 23), 9, 5), ((5, 23), 8, 4), ((6, 5), 8, 4)],
)
@pytest.mark.parametrize("score", [linear, pooled])
@pytest.mark.parametrize("target", [None, (16, 16), (40, 9), (61, 80), (3, 5), (1, 1)])
def test_windows_are_averaged_and_interpolated_as_by_a_loop(shape, size, stride, score, target):
    image = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    found, expected = slide(image, size, stride, score, target).full(), by_loop(image, size, stride, score)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), interpolate(expected, target or shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 4), (48, 48), (50, 97), (3, 2), (1, 1)])
def test_the_whole_image_is_interpolated_as_torch_does(size):
    scores = torch.randn(1, 7, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(ScoreMap(scores, None, (80, 64), (80, 64), size).full(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shape", "stride"), [((8, 8), 3), ((9, 31), 3), ((5, 5), 3), ((33, 7), 3), ((40, 40), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constant_scores_stay_constant(shape, stride, dtype):
    """Many windows of few digits, too: they are added in float32."""
    values = torch.tensor([0.1, -7.3], dtype=dtype).view(1, 2, 1, 1)
    found = slide(torch.zeros(3, *shape), 8, stride, lambda crops: values.expand(len(crops), 2, 4, 4)).full()
    torch.testing.assert_close(found, values[0].float().expand_as(found), rtol=1e-5, atol=0)


class Best:
    """The index of the largest score."""

    def __init__(self, prunable: bool) -> None:
        self.prunable = prunable
        self.seen: list[int] = []

    def decide(self, scores, rows=None):
        self.seen.append(scores.numel())
        best = scores.argmax(dim=0)
        return best if rows is None else rows[best]


@pytest.mark.parametrize(
    ("target", "tile"),
    [((48, 48), 7), ((48, 48), 48), ((50, 97), 9), ((50, 97), 48), ((7, 5), 1), ((1, 1), 1), ((130, 31), 1000)],
)
@pytest.mark.parametrize("prunable", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_labels_of_tiles_are_those_of_the_whole(target, tile, prunable, whole):
    coarse = torch.randn(6, 40, 3, 3, generator=torch.Generator().manual_seed(0))
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
    scores, rule = torch.randn(2, 171, 8, 8, generator=torch.Generator().manual_seed(0)), Best(prunable)
    found = ScoreMap(scores, [(0, 0), (0, 32)], (64, 64), (64, 96), (1024, 2048)).labels(rule)
    assert found.shape == (1024, 2048) and max(rule.seen) <= 171 * 48 * 48
