"""Losses of predicted masks and their classes, on points (Mask2Former, Cheng et al. 2022, section 3.3).

Masks are compared at points instead of all pixels. Pixels that do not count have no weight. Sums are divided by numbers
over all ranks, so that with gradients averaged over ranks the losses are those of the joint batch.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.distributed import total, world_size
from simzss.errors import InputError


@dataclass(frozen=True)
class MaskLossConfig:
    """`conf/mask_loss`: weights of the parts, in the loss and in the cost of an assignment.

    Args:
        class_weight: of the cross-entropy over classes.
        bce_weight: of the binary cross-entropy of masks.
        dice_weight: of the dice loss of masks.
        no_object: weight of a query without an object in the cross-entropy, beside 1 of the others.
        points: at which masks are compared.
        oversample: times as many points are drawn to find uncertain ones among.
        important: share of the points that are the most uncertain ones; the rest is drawn evenly.
    """

    class_weight: float
    bce_weight: float
    dice_weight: float
    no_object: float
    points: int
    oversample: float
    important: float

    def __post_init__(self) -> None:
        for name in ("class_weight", "bce_weight", "dice_weight", "no_object"):
            if not 0 <= getattr(self, name) < math.inf:  # so that NaN is refused too
                raise InputError(f"mask_loss.{name}={getattr(self, name)} must be at least 0")
        if self.points < 1:
            raise InputError(f"mask_loss.points={self.points} must be at least 1")
        if not 1 <= self.oversample < math.inf:
            raise InputError(f"mask_loss.oversample={self.oversample} must be at least 1")
        if not 0 <= self.important <= 1:
            raise InputError(f"mask_loss.important={self.important} must be 0 to 1")


def look_up(maps: Tensor, points: Tensor) -> Tensor:
    """Values of maps at points, bilinear between the centres of cells, those beyond the rim as at the rim.

    Args:
        maps: (N, H, W), or (N, Q, H, W) where Q maps have the same points.
        points: (N, P, 2), across and down, 0..1 over the whole map.

    Returns:
        (N, P), or (N, Q, P).
    """
    several = maps if maps.ndim == 4 else maps[:, None]
    found = F.grid_sample(several, 2 * points[:, None] - 1, padding_mode="border", align_corners=False)[:, :, 0]
    return found if maps.ndim == 4 else found[:, 0]


def labels_at(labels: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """Labels of the pixels that points lie in.

    Args:
        labels: (B, H, W).
        rows: (N) which image the points are of.
        points: (N, P, 2), see `look_up`.

    Returns:
        (N, P).
    """
    height, width = labels.shape[1:]
    across, down = points.unbind(dim=2)
    across, down = (across * width).long().clamp(max=width - 1), (down * height).long().clamp(max=height - 1)
    return labels[rows[:, None], down, across]


def assignment_cost(
    logits: Tensor, masks: Tensor, classes: Tensor, targets: Tensor, counted: Tensor, config: MaskLossConfig
) -> Tensor:
    """What it would cost to let each query explain each object of the same image.

    Args:
        logits: (..., Q, K + 1) of classes, the last of "no object"; `...` are images, or nothing for one.
        masks: (..., Q, P) logits at points.
        classes: (..., M) of the objects.
        targets: (..., M, P), 1 where the object is.
        counted: (..., P), 1 where the point counts.
        config: weights.

    Returns:
        (..., Q, M) float32: minus the class's probability, binary cross-entropy over the points that count, and dice.
    """
    masks, targets, counted = masks.float(), targets.float(), counted.float()[..., None, :]
    number = counted.sum(dim=-1, keepdim=True).clamp(min=1)
    inside, outside = targets * counted, (1 - targets) * counted
    bce = (F.softplus(-masks) @ inside.mT + F.softplus(masks) @ outside.mT) / number
    chance = masks.sigmoid() * counted
    dice = 1 - (2 * chance @ targets.mT + 1) / (chance.sum(dim=-1)[..., None] + inside.sum(dim=-1)[..., None, :] + 1)
    known = -logits.float().softmax(dim=-1).gather(-1, classes[..., None, :].expand(bce.shape))
    return config.class_weight * known + config.bce_weight * bce + config.dice_weight * dice


def class_loss(logits: Tensor, targets: Tensor, counted: Tensor, no_object: float) -> Tensor:
    """Cross-entropy of queries, those of "no object" with less weight, over the weights of all ranks.

    Args:
        logits: (B, Q, K + 1).
        targets: (B, Q), K for "no object".
        counted: (B) bool, images whose queries count.
        no_object: weight of class K.
    """
    weight = torch.where(targets == logits.shape[-1] - 1, no_object, 1.0) * counted[:, None]
    each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (each * weight.flatten()).sum() / _shared(weight.sum())


def mask_losses(masks: Tensor, targets: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of matched masks, over the number of masks of all ranks.

    Args:
        masks: (N, P) logits at points.
        targets: (N, P), 1 inside the object.
        counted: (N, P), 1 where a point counts.

    Returns:
        The mean over masks of the mean cross-entropy over the points that count, and of 1 - (2 |A B| + 1) / (|A| + |B|
        + 1); zero, with a gradient of zero, without a mask.
    """
    masks, targets, counted = masks.float(), targets.float(), counted.float()
    number = _shared(torch.full((), float(len(masks)), device=masks.device))
    each = F.binary_cross_entropy_with_logits(masks, targets, reduction="none") * counted
    bce = (each.sum(dim=1) / counted.sum(dim=1).clamp(min=1)).sum() / number
    chance, inside = masks.sigmoid() * counted, targets * counted
    dice = 1 - (2 * (chance * inside).sum(dim=1) + 1) / (chance.sum(dim=1) + inside.sum(dim=1) + 1)
    return bce, dice.sum() / number


@torch.no_grad()
def uncertain_points(masks: Tensor, config: MaskLossConfig) -> Tensor:
    """Points at which masks are compared: the most uncertain of many, and some anywhere (PointRend, Kirillov et al.
    2020, section 3.1).

    Args:
        masks: (N, H, W) logits.
        config: how many.

    Returns:
        (N, P, 2), see `look_up`.
    """  # fmt: skip
    number, device = len(masks), masks.device
    chosen = round(config.points * config.important)
    tried = torch.rand(number, max(chosen, round(config.points * config.oversample)), 2, device=device)
    best = (-look_up(masks.float(), tried).abs()).topk(chosen, dim=1).indices
    uncertain = tried.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.cat([uncertain, torch.rand(number, config.points - chosen, 2, device=device)], dim=1)


def _shared(number: Tensor) -> Tensor:
    """A number's mean over ranks, at least 1e-6: the divisor that makes averaged gradients those of the joint batch."""
    return (total(number) / world_size()).clamp(min=1e-6)


def objects_of(labels: Tensor, ignore: int, none: int) -> list[Tensor]:
    """The classes that occur in each image.

    Args:
        labels: (B, H, W), 0 to 255.
        ignore: value that is no class.
        none: another.

    Returns:
        (M) for each image, in order, on the CPU: a device is waited for once.
    """
    there = torch.zeros(len(labels), 256, dtype=torch.bool, device=labels.device)
    there.scatter_(1, labels.flatten(1).long(), True)
    there[:, ignore] = there[:, none] = False
    return [found.nonzero()[:, 0] for found in there.cpu()]
