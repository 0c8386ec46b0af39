"""Classes of positions: the geometric ensemble of what the head has learned and the frozen model's zero-shot scores."""

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOOR = 1e-3
"""Added to learned scores: where they are far below it, the frozen model decides alone."""


def mask_pool(masks: Tensor, features: Tensor) -> Tensor:
    """Average features over masks, weighted by the masks' probabilities.

    Args:
        masks: (B, Q, H, W) logits.
        features: (B, D, h, w).

    Returns:
        (B, Q, D), not normalised.
    """
    weights = F.interpolate(masks.float().sigmoid(), features.shape[2:], mode="bilinear", antialias=True).flatten(2)
    total = weights.sum(dim=2, keepdim=True).clamp(min=1e-6)
    return (weights / total) @ features.float().flatten(2).mT


def semantic_inference(class_logits: Tensor, masks: Tensor) -> Tensor:
    """Sum class probability times mask probability over queries (MaskFormer, Cheng et al. 2021, section 3.4).

    Args:
        class_logits: (B, Q, S + 1), the last of "no object".
        masks: (B, Q, H, W) logits.

    Returns:
        (B, S, H, W), whose sum over classes may exceed 1 where masks overlap.
    """
    probabilities = class_logits.float().softmax(dim=-1)[..., :-1]
    return torch.einsum("bqs,bqhw->bshw", probabilities, masks.float().sigmoid())


def geometric_ensemble(learned: Tensor, zero_shot: Tensor, exponents: Tensor) -> Tensor:
    """Combine learned and zero-shot class scores of positions (FC-CLIP, Yu et al. 2023, section 3.3).

    The class of a position is k with p_k ~ (learned_k + e)^(1 - a_k) * zero_shot_k^a_k, over the classes, e = 0.001.
    There is an object with the probability of the sum of the learned scores, e at least; what is left of 1 is shared
    by all classes equally, so that a threshold finds it.

    Args:
        learned: (B, S, H, W) of `semantic_inference`.
        zero_shot: (B, S, H, W) logits of the frozen model.
        exponents: (S) a_k in 0..1 of the frozen model's scores: alpha for classes with training masks, beta for others.

    Returns:
        (B, S, H, W) that sum to 1 over the classes.
    """
    total = learned.sum(dim=1, keepdim=True)
    objectness = total.clamp(_FLOOR, 1)
    log_learned = ((learned + _FLOOR) / (total + _FLOOR * learned.shape[1])).log()
    exponents = exponents.view(-1, 1, 1).to(log_learned)
    classes = ((1 - exponents) * log_learned + exponents * zero_shot.log_softmax(dim=1)).softmax(dim=1)
    return objectness * classes + (1 - objectness) / learned.shape[1]
