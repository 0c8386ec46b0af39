"""Paired bootstrap over images: how far a difference of mIoU depends on which photos were measured."""

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor

from simzss.evaluation.metrics import mious

_BLOCK_BYTES = 64 * 2**20  # of one block of resamples, whatever their number


def difference_interval(
    reference: Tensor, other: Tensor, resamples: int, seed: int, confidence: float
) -> tuple[float, float]:
    """Compute a percentile interval of the difference `other` - `reference` of mIoU, in per cent points.

    Both runs are measured on the very same resample of the images, so that what makes a photo hard for both cancels
    out. What is drawn are the numbers of the images: a resample is then a product of matrices.

    Args:
        reference: (n, K, 3) int64 counts per image and class, n at least 1, each image with a pixel that counts.
        other: the other run's, image by image in the same order.
        resamples: number of resamples.
        seed: of the draws.
        confidence: share of the resamples inside the interval, 0 to 1.

    Returns:
        Lower and upper end.
    """
    n, k, _ = reference.shape
    # float64 holds whole numbers up to 2 ** 53 exactly: these sums of pixels do not depend on their order.
    flat = [counts.reshape(n, 3 * k).double() for counts in (reference, other)]

    def difference(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        """Compute the differences (b,) of resamples (b, n) of image numbers."""
        rows = torch.from_numpy(np.atleast_2d(drawn))
        place = rows + torch.arange(len(rows))[:, None] * n
        weights = torch.bincount(place.flatten(), minlength=len(rows) * n).view(len(rows), n).double()
        before, after = (mious((weights @ counts).view(-1, k, 3)) for counts in flat)
        return (after - before).numpy()

    if n == 1:  # of which there is one resample
        (found,) = difference(np.zeros((1, 1), dtype=np.int64))
        return float(found), float(found)
    interval = bootstrap(
        (np.arange(n),),
        difference,
        n_resamples=resamples,
        batch=max(1, _BLOCK_BYTES // (8 * (3 * n + 16 * k))),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
