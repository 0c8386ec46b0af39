"""Classes of masks: what the head has learned of them, and what the frozen model knows without."""

import torch
import torch.nn.functional as F
from torch import Tensor


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


def ensemble(learned: Tensor, zero_shot: Tensor, share: Tensor) -> Tensor:
    """Class probabilities of queries by the geometric mean of two opinions (FC-CLIP, Yu et al. 2023, section 3.3).

    p_k ~ learned_k^(1 - share_k) * zero_shot_k^share_k, over the classes, times the probability of being an object.

    Args:
        learned: (B, Q, S + 1) logits of the head, the last of "no object".
        zero_shot: (B, Q, S) logits of the frozen model.
        share: (S) of the frozen model in 0..1: low for classes that were learned, high for others.

    Returns:
        (B, Q, S) probabilities, whose sum is that of being an object.
    """
    object_probability = 1 - learned.softmax(dim=-1)[..., -1:]
    mine, theirs = learned[..., :-1].log_softmax(dim=-1), zero_shot.log_softmax(dim=-1)
    return ((1 - share) * mine + share * theirs).softmax(dim=-1) * object_probability


def class_maps(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Probabilities of classes at places: sum over queries of class probability times mask probability (MaskFormer,
    Cheng et al. 2021, section 3.4).

    Args:
        probabilities: (B, Q, S).
        masks: (B, Q, H, W) logits.

    Returns:
        (B, S, H, W) that sum to 1 over the classes: what no mask claims is shared by all of them equally, so that a
        threshold finds it, and what several masks claim is scaled down.
    """  # fmt: skip
    maps = torch.einsum("bqs,bqhw->bshw", probabilities, masks.float().sigmoid())
    claimed = maps.sum(dim=1, keepdim=True)
    return (maps + (1 - claimed).clamp(min=0) / maps.shape[1]) / claimed.clamp(min=1)
