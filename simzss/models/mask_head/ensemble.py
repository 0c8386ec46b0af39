"""Classes of places: what the head has learned, and what the frozen model knows without."""

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOOR = 1e-3
"""Of a claim: far below it what the frozen model sees decides alone."""


def pool_by_masks(masks: Tensor, features: Tensor) -> Tensor:
    """What is seen inside masks: the mean of features, weighed by the masks' probabilities.

    Args:
        masks: (B, Q, H, W) logits.
        features: (B, D, h, w).

    Returns:
        (B, Q, D), not normalised.
    """
    shares = F.interpolate(masks.float().sigmoid(), features.shape[2:], mode="bilinear", antialias=True).flatten(2)
    total = shares.sum(dim=2, keepdim=True).clamp(min=1e-6)
    return (shares / total) @ features.float().flatten(2).mT


def claims(learned: Tensor, masks: Tensor) -> Tensor:
    """How much queries claim places for classes: the sum over queries of class probability times mask probability
    (MaskFormer, Cheng et al. 2021, section 3.4).

    Args:
        learned: (B, Q, S + 1) logits, the last of "no object".
        masks: (B, Q, H, W) logits.

    Returns:
        (B, S, H, W), whose sum over classes may be more than 1 where masks overlap.
    """  # fmt: skip
    probabilities = learned.float().softmax(dim=-1)[..., :-1]
    return torch.einsum("bqs,bqhw->bshw", probabilities, masks.float().sigmoid())


def ensemble(claimed: Tensor, zero_shot: Tensor, share: Tensor) -> Tensor:
    """Class probabilities of places by the geometric mean of two opinions (as FC-CLIP, Yu et al. 2023, section 3.3).

    The class of a place is k with p_k ~ (claimed_k + e)^(1 - share_k) * zero_shot_k^share_k, over the classes, e =
    0.001; there is an object with the probability of the sum of claimed, e at least; what is left of 1 is shared by
    all classes equally, so that a threshold finds it.

    Args:
        claimed: (B, S, H, W) of `claims`.
        zero_shot: (B, S, H, W) logits of the frozen model.
        share: (S) of the frozen model in 0..1: lower for classes that were learned than for others.

    Returns:
        (B, S, H, W) that sum to 1 over the classes.
    """
    total = claimed.sum(dim=1, keepdim=True)
    present = total.clamp(_FLOOR, 1)
    mine = ((claimed + _FLOOR) / (total + _FLOOR * claimed.shape[1])).log()
    share = share.view(-1, 1, 1).to(mine)
    named = ((1 - share) * mine + share * zero_shot.log_softmax(dim=1)).softmax(dim=1)
    return present * named + (1 - present) / claimed.shape[1]
