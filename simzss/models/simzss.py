"""The SimZSS model: a frozen backbone and a learning text encoder in one space. It knows no loss."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simzss.models.backbone.base import Backbone
from simzss.models.feature_norm import FeatureNorm
from simzss.models.features import ImageFeatures, TextFeatures
from simzss.models.mask_head.head import MultiResHead
from simzss.models.text import TextEncoder


class SimZSS(nn.Module):
    """Frozen vision, learning text (LiT, Zhai et al. 2022), and concept vectors out of the text's tokens.

    Args:
        backbone: frozen.
        text_encoder: its output width is the backbone's.
        feature_norm: how backbone features become unit vectors (`none`, `center`, `whiten`).

    Attributes:
        multires: a head that was trained with masks, which segments in place of the patches; None without.
    """

    multires: MultiResHead | None

    def __init__(self, backbone: Backbone, text_encoder: TextEncoder, feature_norm: str = "none") -> None:
        super().__init__()
        self.backbone = backbone
        self.text_encoder = text_encoder
        self.feature_norm = FeatureNorm(feature_norm, backbone.width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.multires = None

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """(B, 3, H, W) images -> L2-normalised `cls` (B, D) and `patches` (B, N, D)."""
        return self.feature_norm(self.backbone(images))

    def finish_patches(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) of `Backbone.patch_map`, or what was made of them -> L2-normalised patches (B, h * w, D)."""
        return self.feature_norm.patches(self.backbone.finish(maps.flatten(2).mT))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> TextFeatures:
        """(B, L) tokens -> L2-normalised `pooled` (B, D) and plain `tokens` (B, L, D), in float32."""
        text = self.text_encoder(input_ids, attention_mask)
        return TextFeatures(F.normalize(text.pooled.float(), dim=-1), text.tokens.float())

    def trainable_state(self) -> dict[str, Tensor]:
        """What training changed: parameters that learn and the feature statistics, by name."""
        learning = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = self.state_dict()
        return {name: state[name] for name in state if name in learning or name.startswith("feature_norm.")}
