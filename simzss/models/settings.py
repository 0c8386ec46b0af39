"""Settings of models: backbone, proxy, text encoder, SAM, mask head."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from simzss.settings.base import Settings
from simzss.settings.types import Positive, Share

Features = Literal["last", "value", "self", "proxy"]
Side = Annotated[int, Field(ge=1, le=2048)]
"""Side of an image in pixels; a backbone is tried on one of this size when it is built."""
TextPooling = Literal["sentence", "tokens", "both"]


class BackboneSettings(Settings):
    """A frozen vision backbone, one file of `conf/backbone`."""

    name: str
    """our name of it; `weights=FOLDER` looks for a file of this name"""
    timm_name: str
    """timm's name, tag included"""
    weights: str | None = None
    """local file, or a folder that holds NAME.safetensors|.pth|.pt|.bin; null: the hub; random: untrained"""
    features: Features = "last"
    """patch features: output of the last block, or for standard ViTs its values, self or proxy attention"""
    project: bool = False
    """apply the model's own head, such as CLIP's projection into the joint space, to every token"""
    image_size: Side = 224
    """side of training images in pixels"""
    feature_norm: Literal["none", "center", "whiten"] = "none"
    """normalisation of features by statistics of the training images"""


class BackboneWeights(Settings):
    """Frozen backbone of a trained model."""

    weights: str | None = None
    """the backbone's weights, where they are not found as recorded in the model folder"""


class ProxySettings(Settings):
    """The model whose similarities replace the last block's attention for `features=proxy` (ProxyCLIP, Lan et al.
    2024, equation 5), one file of `conf/proxy`."""

    name: str | None = None
    """our name of it; null: none; sam: the image embedding of the Segment Anything model"""
    timm_name: str | None = None
    """timm's name, tag included; null: features that the segmenter hands over"""
    weights: str | None = None
    """as backbone.weights"""
    features: Features = "last"
    """as backbone.features"""
    beta: float = 1.2
    """similarities below this many times their mean do not count"""
    gamma: float = 3.0
    """factor of the similarities before the softmax"""


class ScratchText(Settings):
    """SimZSS's text tower, trained from scratch on CLIP's byte-pair tokens."""

    kind: Literal["scratch"] = "scratch"
    """text encoder from scratch"""
    layers: Positive = 12
    """transformer blocks"""
    width: Positive = 512
    """hidden size"""
    heads: Positive = 8
    """attention heads; divides the width"""
    context_length: Annotated[int, Field(ge=3)] = 77
    """maximum sequence length in tokens, start and end included"""

    @field_validator("heads")
    @classmethod
    def _divides(cls, heads: int, info: Any) -> int:
        width = info.data.get("width")
        if width is not None and width % heads:
            raise ValueError(f"does not divide text.width={width}")
        return heads


class PretrainedText(Settings):
    """A sentence encoder from a transformers folder (config.json, model.safetensors, tokenizer) or the hub."""

    kind: Literal["pretrained"] = "pretrained"
    """pretrained text encoder"""
    weights: str
    """folder, or hub repository such as sentence-transformers/all-MiniLM-L6-v2"""
    trainable_layers: Annotated[int, Field(ge=0)] | Literal["all"] = 2
    """last layers that learn; the projection always learns"""
    context_length: Annotated[int, Field(ge=3)] = 77
    """maximum sequence length in tokens, start and end included"""


TextSettings = Annotated[ScratchText | PretrainedText, Field(discriminator="kind")]


class SamSettings(Settings):
    """A Segment Anything model, read where a proxy, an aggregation or a refinement asks it."""

    weights: str = "facebook/sam-vit-base"
    """mobile_sam.pt, a transformers folder or a hub repository"""


class MaskHeadSettings(Settings):
    """The mask head of MROVSeg (Zhu et al. 2024), one file of `conf/mask_head`."""

    window: Side = 224
    """side in pixels of a window, and of the downsized whole image"""
    scale: Positive = 2
    """windows along the short side"""
    views: Literal["both", "global", "windows"] = "both"
    """whole image and windows, or one of them"""
    gate: bool = True
    """mix windows and whole image at each position by a learned gate"""
    restore: bool = True
    """let the convolutions of the adapters cross the borders of windows"""
    masked: bool = True
    """queries attend inside their predicted masks only"""
    depths: tuple[int, ...] = (0, 3, 6, 9)
    """blocks of the backbone after which intermediate features are taken; 0: the stem"""
    width: Positive = 256
    """channels"""
    heads: Positive = 8
    """attention heads; divides the width"""
    queries: Positive = 100
    """maximum number of masks of an image"""
    layers: Positive = 6
    """decoder layers"""
    upsample: Literal[1, 2, 4, 8] = 4
    """mask cells along a side of a patch"""
    ensemble_alpha: Share = 0.6
    """geometric ensemble: exponent of the frozen model's scores for classes with training masks"""
    ensemble_beta: Share = 0.9
    """geometric ensemble: exponent of the frozen model's scores for other classes"""

    @field_validator("depths")
    @classmethod
    def _ordered(cls, depths: tuple[int, ...]) -> tuple[int, ...]:
        if not depths or list(depths) != sorted(set(depths)):
            raise ValueError("must be numbers of blocks, each once, in order")
        return depths

    @field_validator("heads")
    @classmethod
    def _fits(cls, heads: int, info: Any) -> int:
        width = info.data.get("width")
        if width is not None and (width % 4 or width % heads):
            raise ValueError(f"does not fit mask_head.width={width}, which must be a multiple of 4 and of the heads")
        return heads
