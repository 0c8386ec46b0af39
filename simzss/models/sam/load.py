"""Load a Segment Anything model from a file, a folder or the hub."""

import logging
from pathlib import Path
from typing import Any

from transformers import Sam2Model, SamModel

from simzss.errors import ModelError
from simzss.models.pretrained import fetch, load_pretrained, read_pretrained_config
from simzss.models.sam.mobile import load_mobile
from simzss.models.sam.sam import Sam
from simzss.models.sam.sam1 import Sam1
from simzss.models.sam.sam2 import Sam2
from simzss.models.sizes import read_plain

# SAM 2 is published as a model of videos; single images need a part of its weights.
_SAM2 = ("sam2", "sam2_video")
_KINDS = ("sam", *_SAM2)


def load_sam(weights: str, precision: str = "32-true") -> Sam:
    """Load a frozen model.

    Args:
        weights: `mobile_sam.pt`, a transformers folder with a SAM or a SAM 2, or a repository on the hub, such as
            `facebook/sam-vit-base` or `facebook/sam2.1-hiera-large`.
        precision: `bf16-mixed` stores weights in bfloat16; results stay float32.

    Raises:
        ModelError: names what cannot be read, is no such model, or lacks a tensor.
    """
    path = Path(weights)
    if path.is_file():
        return load_mobile(path).use_precision(precision)
    if not path.exists() and (len(path.parts) != 2 or path.suffix in (".pt", ".pth")):
        raise ModelError(f"sam.weights={weights} does not exist")
    return _transformers(weights).use_precision(precision)


def _transformers(weights: str) -> Sam:
    folder = fetch(weights, "sam.weights")
    try:
        kind = read_plain(folder / "config.json").get("model_type")
    except ModelError as error:
        raise ModelError(f"sam.weights={weights} is no model of transformers: {error}") from error
    if kind not in _KINDS:
        raise ModelError(f"sam.weights={weights} is a {kind} model, not one of {', '.join(_KINDS)}")
    family: Any = Sam2Model if kind in _SAM2 else SamModel
    try:
        config = read_pretrained_config(folder, family.config_class)
        # Tensors of another size are rejected below, by name.
        model, loading = load_pretrained(
            family, folder, config, attn_implementation="sdpa", ignore_mismatched_sizes=True
        )
    except ModelError as error:
        raise ModelError(f"sam.weights={weights} cannot be read as a {kind} model: {error}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        names = (name[0] if isinstance(name, tuple) else name for name in loading.get(problem, ()))
        if lacking := sorted(map(str, names)):
            what = "lacks" if problem == "missing_keys" else "has of another size"
            raise ModelError(f"sam.weights={weights} {what} {', '.join(lacking[:3])} ({len(lacking)} tensors)")
    if surplus := sorted(loading.get("unexpected_keys", ())):
        logging.getLogger(__name__).warning(
            "sam.weights=%s holds %d tensors that a %s has no place for, such as %s",
            weights, len(surplus), family.__name__, surplus[0],
        )  # fmt: skip
    _check_size(weights, model.config)
    return Sam2(weights, model) if family is Sam2Model else Sam1(weights, model)


def _check_size(weights: str, config: Any) -> None:
    """Reject a frame that is not square, and an encoder for another one than the prompts'.

    Raises:
        ModelError: names the sizes.
    """
    size, patch = config.prompt_encoder_config.image_size, config.prompt_encoder_config.patch_size
    if not isinstance(size, int) or not isinstance(patch, int) or size % patch:
        raise ModelError(f"sam.weights={weights} has prompts for images of {size} with patches of {patch}, which make "
                         "no square of whole patches")  # fmt: skip
    vision = config.vision_config
    if hasattr(vision, "backbone_feature_sizes"):  # SAM 2
        cells = tuple(vision.backbone_feature_sizes[-1])
    else:
        cells = (vision.image_size // vision.patch_size,) * 2
    if cells != (size // patch,) * 2:
        raise ModelError(f"sam.weights={weights} encodes images as {cells[0]} x {cells[1]} cells, but its prompts are "
                         f"for {size // patch} x {size // patch}")  # fmt: skip
