"""Losses of predicted masks and their classes, on points (Mask2Former, Cheng et al. 2022, section 3.3).

Pixels that do not count have no weight. Sums are divided by numbers over all ranks, so that with gradients averaged
over ranks the losses are those of the joint batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.distributed import total, world_size


def class_loss(logits: Tensor, targets: Tensor, counted: Tensor, eos_coef: float) -> Tensor:
    """Compute the weighted cross-entropy of queries, divided by the weights of all ranks.

    Args:
        logits: (B, Q, K + 1), the last of "no object".
        targets: (B, Q), K for "no object".
        counted: (B) bool, images whose queries count.
        eos_coef: weight of "no object", beside 1 of the classes.
    """
    weight = torch.where(targets == logits.shape[-1] - 1, eos_coef, 1.0) * counted[:, None]
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weight.flatten()).sum() / _mean_over_ranks(weight.sum())


def mask_losses(masks: Tensor, targets: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the binary cross-entropy and the dice loss of matched masks, divided by the number of masks of all ranks.

    Args:
        masks: (N, P) logits at points.
        targets: (N, P), 1 inside the object.
        counted: (N, P), 1 where a point counts.

    Returns:
        The mean over masks of the mean cross-entropy over the points that count, and of 1 - (2 |A B| + 1) / (|A| + |B|
        + 1); zero, with a gradient of zero, without a mask.
    """
    masks, targets, counted = masks.float(), targets.float(), counted.float()
    number = _mean_over_ranks(torch.full((), float(len(masks)), device=masks.device))
    entropy = F.binary_cross_entropy_with_logits(masks, targets, reduction="none") * counted
    bce = (entropy.sum(dim=1) / counted.sum(dim=1).clamp(min=1)).sum() / number
    probability, inside = masks.sigmoid() * counted, targets * counted
    dice = 1 - (2 * (probability * inside).sum(dim=1) + 1) / (probability.sum(dim=1) + inside.sum(dim=1) + 1)
    return bce, dice.sum() / number


def _mean_over_ranks(number: Tensor) -> Tensor:
    """Average over ranks, at least 1e-6: the divisor that makes averaged gradients those of the joint batch."""
    return (total(number) / world_size()).clamp(min=1e-6)


def objects_of(labels: Tensor, ignore: int, none: int) -> list[Tensor]:
    """Return the classes that occur in each image.

    Args:
        labels: (B, H, W), 0 to 255.
        ignore: label that is no class.
        none: another.

    Returns:
        (M) for each image, in order, on the CPU: the device is waited for once.
    """
    present = torch.zeros(len(labels), 256, dtype=torch.bool, device=labels.device)
    present.scatter_(1, labels.flatten(1).long(), True)
    present[:, ignore] = present[:, none] = False
    return [image.nonzero()[:, 0] for image in present.cpu()]
