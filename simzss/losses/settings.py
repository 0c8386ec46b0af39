"""Settings of the losses."""

from typing import Annotated, Literal

from pydantic import Field

from simzss.settings.base import Settings
from simzss.settings.types import Positive, Share

Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]


class LossSettings(Settings):
    """Contrastive loss + weight x concept loss (SimZSS, Stegmüller et al. 2025), one file of `conf/loss`."""

    concept_weight: Weight = 1.0
    """of the concept loss; 0 is LiT (Zhai et al. 2022)"""
    target: Literal["concept", "argmax"] = "concept"
    """of the concept loss: the concept's own id, or as the original release the likeliest one"""
    concept_temperature: Temperature = 0.07
    """of the concept logits"""
    pool_temperature: Temperature = 0.1
    """of the similarity pooling of patches"""


class MaskLossSettings(Settings):
    """Weights of the mask losses and of the matching cost (Mask2Former, Cheng et al. 2022), `conf/mask_loss`."""

    class_weight: Weight = 2.0
    """of the cross-entropy over classes"""
    bce_weight: Weight = 5.0
    """of the binary cross-entropy of masks"""
    dice_weight: Weight = 5.0
    """of the dice loss of masks"""
    eos_coef: Weight = 0.1
    """weight of unmatched queries in the cross-entropy"""
    num_points: Positive = 12544
    """points at which masks are compared"""
    oversample_ratio: Annotated[float, Field(ge=1)] = 3.0
    """times as many points are drawn, to find uncertain ones"""
    importance_sample_ratio: Share = 0.75
    """share of the points that are the most uncertain"""
