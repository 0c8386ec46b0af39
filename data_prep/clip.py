"""Make a model folder of CLIP's own two towers: its text tower in place of a trained one.

    python -m data_prep.clip backbone=clip_vitb16 backbone.weights=DIR text=openai/clip-vit-base-patch16 output=DIR

`text` may be in the layout of transformers (a CLIPModel or a CLIPTextModelWithProjection) or of open_clip
(`open_clip_model.safetensors`, `open_clip_config.json` beside it if there). Tensors are read from safetensors alone.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep.clip_text import TextTower, read_text_tower
from simzss.config import compose, fill, help_text, require_complete, to_plain
from simzss.errors import InputError, run_program
from simzss.models.backbone.base import Backbone
from simzss.models.checkpoint import save_model
from simzss.models.simzss import SimZSS
from simzss.models.text import TextEncoder
from simzss.models.tokenizer import clip_tokenizer

FINAL_LOGIT_SCALE = math.log(100)
"""Bound at which CLIP's training holds its scale, and where it ends: for weights that come without it."""


@dataclass(frozen=True)
class ClipSettings:
    """What `conf/clip.yaml` holds besides the backbone."""

    text: str
    output: str
    quick_gelu: bool | None = None


def main() -> None:
    """Read arguments, make the folder, report."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(help_text("clip", details=True))
        return
    config = compose("clip", arguments)
    require_complete(config)
    plain = to_plain(config)
    backbone = plain.pop("backbone")
    asked = [argument for argument in arguments if argument.startswith("backbone.feature_norm=")]
    if asked and backbone["feature_norm"] != "none":
        raise InputError(f"{asked[-1]}: CLIP's space is used as it is, and has no statistics of training images")
    for line in make_folder(backbone, fill(ClipSettings, plain)):
        print(line)


def make_folder(backbone: Mapping[str, Any], settings: ClipSettings) -> list[str]:
    """Write the model folder.

    Args:
        backbone: the group `backbone` of the configuration.
        settings: the rest of it.

    Returns:
        Lines that say what was made.

    Raises:
        InputError: a text tower that cannot be read, or that is none of this backbone's.
    """
    if not isinstance(settings.text, str):
        raise InputError(f"text={settings.text} must be one file, folder or hub repository")
    if not backbone["project"]:
        raise InputError(f"backbone.project=false of {backbone['name']}: CLIP's texts meet its images behind the image "
                         "tower's projection; give a CLIP backbone, or backbone.project=true")  # fmt: skip
    quick = _is_quick(backbone["timm_name"])
    tower = read_text_tower(settings.text, settings.quick_gelu, otherwise=quick)
    spec = {key: value for key, value in backbone.items() if key != "feature_norm"}
    frozen = Backbone(**spec)
    _check_pair(settings.text, tower, frozen, trained=spec["weights"] != "random")

    encoder = build_encoder(tower)
    model = SimZSS(frozen, encoder, feature_norm="none").eval()
    scale = FINAL_LOGIT_SCALE if tower.logit_scale is None else tower.logit_scale
    with torch.no_grad():
        model.logit_scale.fill_(scale)
    body = tower.body.config
    untrained = {
        "backbone": {**spec, "feature_norm": "none"},
        "text": {
            "kind": "scratch",
            "layers": body.num_hidden_layers,
            "width": body.hidden_size,
            "heads": body.num_attention_heads,
            "context_length": body.max_position_embeddings,
        },
        "seed": 0,
    }
    source = {"readout": "sentence", "untrained": untrained, "steps": 0, "text_weights": settings.text}
    try:
        save_model(model, Path(settings.output), spec, source)
    except OSError as error:
        raise InputError(f"output={settings.output} cannot be written: {error}") from error

    lines = [f"{settings.output}: text tower of {body.num_hidden_layers} layers, {body.hidden_size} channels, "
             f"{body.hidden_act}, beside {frozen.name}; {frozen.width} channels in common"]  # fmt: skip
    if tower.logit_scale is None:
        lines.append(f"note: the weights hold no logit scale; set to {math.exp(scale):.0f}")
    if tower.image_projection is None:
        lines.append("note: the weights hold no image tower; whether the backbone's is theirs was not checked")
    if (body.hidden_act == "quick_gelu") != quick:
        lines.append(f"note: the text tower has {body.hidden_act}, timm's {frozen.timm_name} has "
                     f"{'quick_gelu' if quick else 'gelu'} by its name; quick_gelu={str(quick).lower()} "
                     "changes the text tower")  # fmt: skip
    return lines


def build_encoder(tower: TextTower) -> TextEncoder:
    """The tower as a text encoder: sentence vector at the end of the text, CLIP's tokenizer."""
    width = len(tower.projection)
    encoder = TextEncoder(tower.body, clip_tokenizer(), "eot", width, tower.body.config.max_position_embeddings)
    with torch.no_grad():
        encoder.projection.weight.copy_(tower.projection)
    return encoder.eval()


def _check_pair(text: str, tower: TextTower, backbone: Backbone, trained: bool) -> None:
    """Refuse towers of two models: their vectors would have nothing to do with each other.

    Args:
        text: for the messages.
        tower: text.
        backbone: images.
        trained: whether the backbone has weights of its own.
    """
    if len(tower.projection) != backbone.width:
        raise InputError(f"text={text} gives {len(tower.projection)} channels, backbone {backbone.name} gives "
                         f"{backbone.width}: they are not of one CLIP")  # fmt: skip
    if tower.image_projection is None or not trained:
        return
    own, other = backbone.model.head.weight.float(), tower.image_projection
    # Weights may have been stored as bfloat16 in between.
    if own.shape != other.shape or (own - other).abs().max() > 0.01 * other.abs().max():
        raise InputError(f"text={text} belongs to another image tower than backbone {backbone.name}"
                         f"{f' ({backbone.weights_file})' if backbone.weights_file else ''}: their image projections "
                         "differ")  # fmt: skip


def _is_quick(timm_name: str) -> bool:
    """Whether an image tower has the approximate GELU that OpenAI trained with, by timm's name of it."""
    return "quickgelu" in timm_name or timm_name.endswith(".openai")


if __name__ == "__main__":
    run_program(main)
