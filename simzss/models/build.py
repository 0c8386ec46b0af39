"""Models from settings: the one place that turns settings into networks."""

from typing import Any

import torch

from simzss.errors import ModelError
from simzss.models.backbone.base import Backbone
from simzss.models.backbone.timm import TimmBackbone
from simzss.models.settings import BackboneSettings, PretrainedText, ProxySettings, ScratchText, TextSettings
from simzss.models.simzss import SimZSS
from simzss.models.text import TextEncoder, pretrained_text_encoder, scratch_text_encoder


def build_backbone(settings: BackboneSettings, proxy: ProxySettings | None = None, seed: int = 0) -> Backbone:
    """Build a frozen backbone.

    Args:
        settings: which one.
        proxy: for `features=proxy`; None, or one without a name, for none.
        seed: of untrained weights, which are then those of a training run with this seed.

    Raises:
        InputError: see `TimmBackbone`.
    """
    torch.manual_seed(seed)
    return TimmBackbone(settings, proxy)


def build_text_encoder(settings: TextSettings, embed_dim: int) -> TextEncoder:
    """Build a text encoder whose output has `embed_dim` channels.

    Raises:
        ConfigError: more layers or positions than the encoder has.
        ModelError: weights that are missing, broken or of another kind.
    """
    if isinstance(settings, PretrainedText):
        return pretrained_text_encoder(settings, embed_dim)
    return scratch_text_encoder(settings, embed_dim)


def build_model(backbone: BackboneSettings, proxy: ProxySettings | None, text: TextSettings, seed: int) -> SimZSS:
    """Build the model before training; equal arguments give equal weights.

    Its `info` keeps the arguments, from which `build_untrained` makes it again.

    Raises:
        InputError: see `build_backbone` and `build_text_encoder`.
    """
    frozen = build_backbone(backbone, proxy, seed)
    model = SimZSS(frozen, build_text_encoder(text, frozen.width), backbone.feature_norm)
    model.info["untrained"] = untrained_info(backbone, frozen.proxy, text, seed)
    return model


def untrained_info(
    backbone: BackboneSettings, proxy: ProxySettings | None, text: TextSettings, seed: int
) -> dict[str, Any]:
    """Return the arguments of `build_model` as plain JSON values, for `SimZSS.info`."""
    named = None if proxy is None or proxy.name is None else proxy.plain()
    return {"backbone": backbone.plain() | {"proxy": named}, "text": text.plain(), "seed": seed}


def build_untrained(model: SimZSS) -> SimZSS:
    """Build a trained model as it was before training, on the same backbone and with the same feature statistics.

    Raises:
        ModelError: the model does not tell what it was trained from.
    """
    try:
        before = model.info["untrained"]
        text = dict(before["text"])
        settings = (PretrainedText if text.get("kind") == "pretrained" else ScratchText).of(text)
        backbone = BackboneSettings.of({key: before["backbone"][key] for key in BackboneSettings.model_fields})
        seed = int(before["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the model does not tell how it was before training: {error} in its config.json") from error
    # The backbone of the trained model, wherever its file lies now.
    frozen = model.backbone.settings
    file = model.backbone.weights_file
    now = {"weights": str(file) if file else backbone.weights, "features": frozen.features}
    untrained = build_model(backbone.replace(**now), model.backbone.proxy, settings, seed)
    untrained.feature_norm.load_state_dict(model.feature_norm.state_dict())
    untrained.text_pooling = model.text_pooling
    return untrained
