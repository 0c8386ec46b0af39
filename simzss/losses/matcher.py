"""Bipartite matching of queries with objects (DETR, Carion et al. 2020, section 3.1)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from simzss.losses.points import point_sample, sample_labels
from simzss.losses.settings import MaskLossSettings


class HungarianMatcher:
    """Matches the queries of every decoder layer with the objects of the same image, at least total cost.

    Args:
        settings: weights of the cost, and the number of random points at which masks are compared.
        ignore: label of pixels that do not count.
    """

    def __init__(self, settings: MaskLossSettings, ignore: int) -> None:
        self.settings = settings
        self.ignore = ignore

    @torch.no_grad()
    def __call__(
        self, class_logits: Sequence[Tensor], masks: Sequence[Tensor], labels: Tensor, objects: Sequence[Tensor]
    ) -> Tensor:
        """Match.

        Args:
            class_logits: (B, Q, K + 1) of each of L layers.
            masks: (B, Q, H, W) logits of each of them.
            labels: (B, S, S).
            objects: (M) classes of the objects of each image, on the CPU.

        Returns:
            (L, 3, N) images, queries and classes of the matched pairs.
        """
        classes = pad_sequence(list(objects), batch_first=True).to(labels.device)  # (B, M)
        every = torch.arange(len(labels), device=labels.device)
        costs = []
        for logits, own in zip(class_logits, masks, strict=True):
            points = torch.rand(len(labels), self.settings.num_points, 2, device=labels.device)
            sampled = sample_labels(labels, every, points)  # (B, P)
            targets = sampled[:, None] == classes[:, :, None]  # (B, M, P)
            predicted = point_sample(own, points)  # (B, Q, P)
            costs.append(cost_matrix(logits, predicted, classes, targets, sampled != self.ignore, self.settings))
        on_host = torch.stack(costs).cpu()  # (L, B, Q, M): the device is waited for once for all layers
        return torch.stack([_matched(layer, objects) for layer in on_host]).to(labels.device)


def _matched(costs: Tensor, objects: Sequence[Tensor]) -> Tensor:
    """Match by costs (B, Q, M); return (3, N) images, queries and classes."""
    pairs = hungarian_match([cost[:, : len(own)] for cost, own in zip(costs, objects, strict=True)])
    images = torch.cat([torch.full_like(queries, image) for image, (queries, _) in enumerate(pairs)])
    classes = torch.cat([own[items] for own, (_, items) in zip(objects, pairs, strict=True)])
    return torch.stack([images, torch.cat([queries for queries, _ in pairs]), classes])


def cost_matrix(
    class_logits: Tensor, masks: Tensor, classes: Tensor, targets: Tensor, counted: Tensor, settings: MaskLossSettings
) -> Tensor:
    """Compute the matching cost of each query with each object of the same image.

    Args:
        class_logits: (..., Q, K + 1), the last of "no object"; `...` are images, or nothing for one.
        masks: (..., Q, P) logits at points.
        classes: (..., M) of the objects.
        targets: (..., M, P), 1 where the object is.
        counted: (..., P), 1 where the point counts.
        settings: weights.

    Returns:
        (..., Q, M) float32: minus the class's probability, binary cross-entropy over the points that count, and dice.
    """
    masks, targets, counted = masks.float(), targets.float(), counted.float()[..., None, :]
    number = counted.sum(dim=-1, keepdim=True).clamp(min=1)
    inside, outside = targets * counted, (1 - targets) * counted
    bce = (F.softplus(-masks) @ inside.mT + F.softplus(masks) @ outside.mT) / number
    probability = masks.sigmoid() * counted
    area = probability.sum(dim=-1)[..., None] + inside.sum(dim=-1)[..., None, :]
    dice = 1 - (2 * probability @ targets.mT + 1) / (area + 1)
    named = -class_logits.float().softmax(dim=-1).gather(-1, classes[..., None, :].expand(bce.shape))
    return settings.class_weight * named + settings.bce_weight * bce + settings.dice_weight * dice


@torch.no_grad()
def hungarian_match(costs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Solve the assignment of least total cost for each image.

    Args:
        costs: (Q, M) of the Q queries and M objects of each image, on the CPU. NaN and infinity count as 1e6, so that
            they are chosen last.

    Returns:
        min(Q, M) pairs of each image as (queries, objects), int64, by query.
    """
    pairs = []
    for cost in costs:
        # SciPy refuses NaN; the loss itself reports it later.
        finite = np.nan_to_num(cost.float().numpy(), nan=1e6, posinf=1e6, neginf=-1e6)
        rows, columns = linear_sum_assignment(finite)
        pairs.append((torch.from_numpy(rows), torch.from_numpy(columns)))
    return pairs
