"""Image-caption contrastive loss (CLIP's InfoNCE, Radford et al. 2021) over the global batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.distributed import gather_rows, rank


def contrastive_loss(cls: Tensor, pooled: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of matching images with captions.

    Args:
        cls: (B, D) L2-normalised image vectors of this rank.
        pooled: (B, D) L2-normalised sentence vectors, row i belongs to image i.
        logit_scale: log of the factor on cosines, clamped to a factor of 100.

    Returns:
        This rank's mean over its 2B rows; its mean over ranks is the loss of the joint batch.
    """
    scale = logit_scale.exp().clamp(max=100.0)
    all_cls, all_pooled = gather_rows(cls), gather_rows(pooled)
    target = torch.arange(len(cls), device=cls.device) + rank() * len(cls)
    image_to_text = F.cross_entropy(scale * cls @ all_pooled.T, target)
    text_to_image = F.cross_entropy(scale * pooled @ all_cls.T, target)
    return (image_to_text + text_to_image) / 2
