"""Whole-image and sliding-window inference over any function of windows."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def windows(length: int, size: int, stride: int) -> list[int]:
    """Start of each window along a side: every `stride`, the last one flush with the end; one if it fits whole."""
    if length <= size:
        return [0]
    starts = list(range(0, length - size, stride))
    return [*starts, length - size]


def slide(image: Tensor, size: int, stride: int, score: Callable[[Tensor], Tensor], batch: int = 8) -> Tensor:
    """Mean of the scores of overlapping windows.

    Args:
        image: (3, H, W).
        size: side of a window in pixels; smaller where the image is.
        stride: between windows.
        score: (b, 3, h, w) windows -> (b, S, h', w') scores.
        batch: windows at a time.

    Returns:
        (S, H, W).
    """
    height, width = image.shape[-2:]
    window = (min(size, height), min(size, width))
    places = [(y, x) for y in windows(height, size, stride) for x in windows(width, size, stride)]
    total: Tensor | None = None
    count = torch.zeros(height, width, device=image.device)
    for chunk in _chunks(places, batch):
        crops = torch.stack([image[:, y : y + window[0], x : x + window[1]] for y, x in chunk])
        scores = F.interpolate(score(crops).float(), size=window, mode="bilinear", align_corners=False)
        if total is None:
            total = scores.new_zeros(scores.shape[1], height, width)
        for (y, x), one in zip(chunk, scores, strict=True):
            total[:, y : y + window[0], x : x + window[1]] += one
            count[y : y + window[0], x : x + window[1]] += 1
    assert total is not None
    return total / count


def _chunks(places: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for i in range(0, len(places), size):
        yield places[i : i + size]
