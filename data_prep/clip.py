"""Make a model folder of CLIP's own two towers: its text tower in place of a trained one.

    simzss prep clip backbone=clip_vitb16 backbone.weights=DIR text=openai/clip-vit-base-patch16 output=DIR

`text` may be in the layout of transformers (a CLIPModel or a CLIPTextModelWithProjection) or of open_clip
(`open_clip_model.safetensors`, `open_clip_config.json` beside it if there). Tensors are read from safetensors alone.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from simzss.errors import ConfigError, ModelError
from simzss.models.backbone.base import Backbone
from simzss.models.build import build_backbone, untrained_info
from simzss.models.checkpoint import save_model
from simzss.models.settings import BackboneSettings, ScratchText
from simzss.models.simzss import SimZSS
from simzss.models.text import TextEncoder
from simzss.models.tokenizer import clip_tokenizer
from simzss.program import run_program
from simzss.settings.base import Settings
from simzss.settings.program import parse

from .clip_text import TextTower, read_text_tower

FINAL_LOGIT_SCALE = math.log(100)
"""Bound at which CLIP's training holds its scale, and where it ends: for weights that come without it."""


class ClipSettings(Settings):
    """Make a model folder of CLIP's own two towers."""

    backbone: BackboneSettings
    """image tower; any whose project is true. Its feature_norm has no part: CLIP's space is used as it is"""
    text: str
    """transformers folder of a CLIP, .safetensors file of open_clip, folder with one of them, or hub repository"""
    output: Path
    """model folder, for `simzss eval` and `simzss segment`"""
    quick_gelu: bool | None = None
    """activation of the text tower; null: what its configuration says, else what the backbone has"""


def main(arguments: list[str] | None = None) -> None:
    """Read arguments (default: of the command line), make the folder, report."""
    arguments = sys.argv[1:] if arguments is None else arguments
    settings = parse(ClipSettings, arguments, "clip")
    asked = [argument for argument in arguments if argument.startswith("backbone.feature_norm=")]
    if asked and settings.backbone.feature_norm != "none":
        raise ConfigError(f"{asked[-1]}: CLIP's space is used as it is, and has no statistics of training images")
    for line in make_folder(settings):
        print(line)


def make_folder(settings: ClipSettings) -> list[str]:
    """Write the model folder; return lines that describe it.

    Raises:
        ConfigError: a backbone without its projection, an output that cannot be written.
        ModelError: a text tower that cannot be read, or that belongs to another backbone.
    """
    image = settings.backbone.replace(feature_norm="none")
    if not image.project:
        raise ConfigError(f"backbone.project=false of {image.name}: CLIP's texts meet its images behind the image "
                          "tower's projection; give a CLIP backbone, or backbone.project=true")  # fmt: skip
    quick = _is_quick(image.timm_name)
    tower = read_text_tower(settings.text, settings.quick_gelu, otherwise=quick)
    backbone = build_backbone(image)
    _check_pair(settings.text, tower, backbone, trained=image.weights != "random")
    model = SimZSS(backbone, build_encoder(tower), feature_norm="none").eval()
    with torch.no_grad():
        model.logit_scale.fill_(FINAL_LOGIT_SCALE if tower.logit_scale is None else tower.logit_scale)
    body = tower.body.config
    untrained = ScratchText(
        layers=body.num_hidden_layers,
        width=body.hidden_size,
        heads=body.num_attention_heads,
        context_length=body.max_position_embeddings,
    )
    model.text_pooling = "sentence"
    model.info = {"untrained": untrained_info(image, None, untrained, 0), "steps": 0, "text_weights": settings.text}
    try:
        save_model(model, settings.output)
    except OSError as error:
        raise ConfigError(f"output={settings.output} cannot be written: {error}") from error
    return list(_report(settings, tower, backbone, quick))


def _report(settings: ClipSettings, tower: TextTower, backbone: Backbone, quick: bool) -> Iterator[str]:
    """Describe the folder, and what could not be checked."""
    body = tower.body.config
    yield (f"{settings.output}: text tower of {body.num_hidden_layers} layers, {body.hidden_size} channels, "
           f"{body.hidden_act}, beside {backbone.name}; {backbone.width} channels in common")  # fmt: skip
    if tower.logit_scale is None:
        yield f"note: the weights hold no logit scale; set to {math.exp(FINAL_LOGIT_SCALE):.0f}"
    if tower.image_projection is None:
        yield "note: the weights hold no image tower; whether the backbone's is theirs was not checked"
    if (body.hidden_act == "quick_gelu") != quick:
        yield (f"note: the text tower has {body.hidden_act}, timm's {settings.backbone.timm_name} has "
               f"{'quick_gelu' if quick else 'gelu'} by its name; quick_gelu={str(quick).lower()} "
               "changes the text tower")  # fmt: skip


def build_encoder(tower: TextTower) -> TextEncoder:
    """Build a text encoder on the tower, with CLIP's tokenizer."""
    width = len(tower.projection)
    encoder = TextEncoder(tower.body, clip_tokenizer(), "eot", width, tower.body.config.max_position_embeddings)
    with torch.no_grad():
        encoder.projection.weight.copy_(tower.projection)
    return encoder.eval()


def _check_pair(text: str, tower: TextTower, backbone: Backbone, trained: bool) -> None:
    """Reject towers of two models, which have no space in common.

    Args:
        text: for messages.
        tower: text tower.
        backbone: image tower.
        trained: False for a backbone of random weights, which fits any.

    Raises:
        ModelError: another width, another image projection.
    """
    if len(tower.projection) != backbone.width:
        raise ModelError(f"text={text} gives {len(tower.projection)} channels, backbone {backbone.name} gives "
                         f"{backbone.width}: they are not of one CLIP")  # fmt: skip
    if tower.image_projection is None or not trained:
        return
    own, other = backbone.model.head.weight.float(), tower.image_projection
    # Weights may have been stored as bfloat16 in between.
    if own.shape != other.shape or (own - other).abs().max() > 0.01 * other.abs().max():
        raise ModelError(f"text={text} belongs to another image tower than backbone {backbone.name}"
                         f"{f' ({backbone.weights_file})' if backbone.weights_file else ''}: their image projections "
                         "differ")  # fmt: skip


def _is_quick(timm_name: str) -> bool:
    """Tell from timm's name whether an image tower has OpenAI's approximate GELU."""
    return "quickgelu" in timm_name or timm_name.endswith(".openai")


if __name__ == "__main__":
    run_program(main)
