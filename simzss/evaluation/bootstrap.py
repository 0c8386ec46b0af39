"""Paired bootstrap over images: how far a difference of mIoU depends on which photos were measured."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from simzss.evaluation.counts import mious

__all__ = ["bootstrap_differences", "percentile_interval", "resamples"]

_BLOCK_BYTES = 64 * 2**20  # of one block of resamples, whatever their number


def resamples(images: int, count: int, seed: int, rows: int) -> Iterator[Tensor]:
    """Draw `count` resamples of as many images as there are, with replacement.

    Args:
        images: n.
        count: how many resamples.
        seed: of the draws; they do not depend on `rows`.
        rows: resamples in one block.

    Yields:
        (at most `rows`, n) float64: how often each image is in each resample; a row adds up to n.
    """
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, rows):
        block = min(rows, count - start)
        drawn = torch.randint(images, (block, images), generator=generator)
        drawn += torch.arange(block)[:, None] * images
        yield torch.bincount(drawn.flatten(), minlength=block * images).view(block, images).double()


def bootstrap_differences(reference: Tensor, other: Tensor, count: int, seed: int) -> Tensor:
    """Difference `other` - `reference` of mIoU, in per cent points, in each resample of the images.

    Both runs are measured on the very same resample, so that what makes a photo hard for both cancels out.

    Args:
        reference: (n, K, 3) int64 counts per image and class, n at least 1.
        other: the other run's, image by image in the same order.
        count: how many resamples.
        seed: of the draws.

    Returns:
        (count,) float64; nan where no image of a resample has a pixel that counts.
    """
    n, k, _ = reference.shape
    # float64 holds whole numbers up to 2 ** 53 exactly: these sums of pixels do not depend on their order.
    flat = [counts.reshape(n, 3 * k).double() for counts in (reference, other)]
    rows = max(1, _BLOCK_BYTES // (8 * (3 * n + 16 * k)))
    blocks = []
    for weights in resamples(n, count, seed, rows):
        before, after = (mious((weights @ counts).view(-1, k, 3)) for counts in flat)
        blocks.append(after - before)
    return torch.cat(blocks)


def percentile_interval(values: Tensor, confidence: float) -> tuple[float, float]:
    """The middle `confidence` (0 to 1) of the values, those that are nan left out."""
    tail = (1 - confidence) / 2
    quantiles = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = torch.quantile(values.double()[~values.isnan()], quantiles).tolist()
    return low, high
