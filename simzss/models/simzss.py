"""The SimZSS model: a frozen backbone and a trainable text encoder in one space."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simzss.models.backbone.base import Backbone
from simzss.models.feature_norm import FeatureNorm
from simzss.models.features import ImageFeatures, TextFeatures
from simzss.models.mask_head.head import MaskHead
from simzss.models.settings import TextPooling
from simzss.models.text import TextEncoder


class SimZSS(nn.Module):
    """A frozen backbone, a text encoder (LiT, Zhai et al. 2022), and the map of features to unit vectors.

    Args:
        backbone: frozen.
        text_encoder: its output width is the backbone's.
        feature_norm: normalisation of backbone features (`none`, `center`, `whiten`).

    Attributes:
        mask_head: head trained with masks, which segments in place of the patches; None without.
        text_pooling: default way from a prompt to a class vector: `sentence`, `tokens` or `both`.
        info: where the model comes from, plain JSON values; a model folder keeps them.
    """

    mask_head: MaskHead | None

    def __init__(self, backbone: Backbone, text_encoder: TextEncoder, feature_norm: str = "none") -> None:
        super().__init__()
        self.backbone = backbone
        self.text_encoder = text_encoder
        self.feature_norm = FeatureNorm(feature_norm, backbone.width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.mask_head = None
        self.text_pooling: TextPooling = "tokens"
        self.info: dict[str, Any] = {}

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Encode images (B, 3, H, W): L2-normalised `cls` (B, D) and `patches` (B, N, D)."""
        return self.feature_norm(self.backbone(images))

    def finish_patches(self, maps: Tensor) -> Tensor:
        """Finish maps (B, C, h, w) of `Backbone.patch_map`: L2-normalised patches (B, h * w, D)."""
        return self.feature_norm.patches(self.backbone.finish(maps.flatten(2).mT))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> TextFeatures:
        """Encode token ids (B, L): L2-normalised `pooled` (B, D) and unnormalised `tokens` (B, L, D), in float32."""
        text = self.text_encoder(input_ids, attention_mask)
        return TextFeatures(F.normalize(text.pooled.float(), dim=-1), text.tokens.float())

    def trainable_state(self) -> dict[str, Tensor]:
        """Return what training changes: trainable parameters and feature statistics, by name."""
        learning = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = self.state_dict()
        return {name: state[name] for name in state if name in learning or name.startswith("feature_norm.")}
