"""Create timm models by name, with all their weights from a file or the hub."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from simzss.errors import ConfigError, ModelError, nearest
from simzss.models.tensors import read_tensors

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def find_weights(name: str, weights: str | None) -> Path | None:
    """Return the file that `weights` names: itself, or NAME.SUFFIX in a folder; None for the hub or `random`.

    Raises:
        ModelError: there is none.
    """
    if weights is None or weights == "random":
        return None
    path = Path(weights)
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelError(f"backbone.weights={weights} does not exist")
    for suffix in _SUFFIXES:
        if (candidate := path / f"{name}{suffix}").is_file():
            return candidate
    raise ModelError(f"backbone.weights={weights} holds no {name}{{{','.join(_SUFFIXES)}}}")


def create_model(timm_name: str, file: Path | None, pretrained: bool, head: bool) -> nn.Module:
    """Create a timm model that takes images of any size where its kind allows it.

    Args:
        timm_name: timm's name, tag included.
        file: its weights; None: the hub's.
        pretrained: False leaves it untrained.
        head: keep its classifier.

    Raises:
        ConfigError: timm has no such model.
        ModelError: weights that are missing or do not fit.
    """
    if not timm.is_model(timm_name.partition(".")[0]):
        raise ConfigError(f"timm has no model {timm_name!r}; {nearest(timm_name, timm.list_models())}")
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        if file is not None:
            return _load_file(timm_name, file, head)
        return _build(timm_name, pretrained=pretrained, **({} if head else {"num_classes": 0}))
    except ModelError as error:
        raise ModelError(f"weights of {timm_name}: {error}") from error
    except Exception as error:
        # Reading strangers' weights fails in as many ways as there are formats; each must end as one clear line.
        reason = " ".join(str(error).split())
        if file is not None:
            raise ModelError(f"weights {file} do not fit {timm_name}: {reason[:300]}") from error
        if pretrained and "tag" not in reason:
            raise ModelError(f"weights of {timm_name} cannot be fetched from the hub ({reason[:120]}); "
                             "give backbone.weights=FILE") from error  # fmt: skip
        raise ModelError(f"timm cannot build {timm_name}: {reason[:300]}") from error


def _load_file(timm_name: str, file: Path, head: bool) -> nn.Module:
    """Create a model with the weights of a local file, all of which must fit.

    timm loads without checking names as soon as the classifier is left out, so the classifier is loaded with the rest
    and taken off afterwards; a file may lack the classifier, and nothing else.
    """
    tensors = read_tensors(file)
    try:
        model = _build(timm_name, **_pretrained(tensors))
    except RuntimeError as error:
        lacking, _, surplus = str(error).partition("Unexpected key(s)")
        names = re.findall(r'"([^"]+)"', lacking)
        if head or surplus or not names or not all(name.startswith(("head.", "classifier.", "fc.")) for name in names):
            raise
        return _build(timm_name, num_classes=0, **_pretrained(tensors))
    if not head:
        model.reset_classifier(0)
    return model


def _pretrained(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return timm's options for loading these tensors, through its filters of names, and no file."""
    overlay = {"state_dict": dict(tensors), "custom_load": False}
    return {"pretrained": True, "pretrained_cfg_overlay": overlay}


def _build(timm_name: str, **options: Any) -> Any:
    model: Any
    try:
        model = timm.create_model(timm_name, dynamic_img_size=True, **options)
    except TypeError:  # not a ViT: takes any size as it is
        model = timm.create_model(timm_name, **options)
    model.pretrained_cfg.pop("state_dict", None)  # a second copy of all tensors
    if _averages_untrained(model):
        model.global_pool = "token"
    return model


def _averages_untrained(model: Any) -> bool:
    """Tell whether timm averages patches though the model has a class token and no head trained on the average.

    So for DINOv3, whose authors use the class token; models pre-trained without labels have no classifier in timm.
    """
    return (
        getattr(model, "global_pool", None) == "avg"
        and getattr(model, "cls_token", None) is not None
        and isinstance(getattr(model, "fc_norm", None), nn.Identity)
        and model.pretrained_cfg.get("num_classes") == 0
    )


def stride_of(model: Any, timm_name: str) -> int:
    """Return the side of a patch in pixels.

    Raises:
        ModelError: the model does not tell.
    """
    patch_embed: Any = getattr(model, "patch_embed", None)
    try:
        if hasattr(patch_embed, "patch_size") and getattr(model, "num_prefix_tokens", None) is not None:
            return int(patch_embed.patch_size[0])
        return int(model.feature_info[-1]["reduction"])
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ModelError(f"timm's {timm_name} does not tell its stride; it cannot be a backbone") from error
