"""timm models by name: their weights from a file or the hub, every one of them."""

import logging
import re
from pathlib import Path
from typing import Any

import timm
from torch import nn

from simzss.errors import InputError, nearest

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def find_weights(name: str, weights: str | None) -> Path | None:
    """The file that `weights` means: itself, or `<name>.<suffix>` in a folder; None for the hub or `random`.

    Raises:
        InputError: nothing there.
    """
    if weights is None or weights == "random":
        return None
    path = Path(weights)
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"backbone.weights={weights} does not exist")
    for suffix in _SUFFIXES:
        if (candidate := path / f"{name}{suffix}").is_file():
            return candidate
    raise InputError(f"backbone.weights={weights} holds no {name}{{{','.join(_SUFFIXES)}}}")


def create_model(timm_name: str, file: Path | None, pretrained: bool, head: bool) -> nn.Module:
    """A timm model that takes images of any size where its kind allows it.

    Args:
        timm_name: timm's name, tag included.
        file: its weights; None: the hub's.
        pretrained: False leaves it untrained.
        head: keep its classifier.

    Raises:
        InputError: timm has no such model, or weights that are missing or do not fit.
    """
    if not timm.is_model(timm_name.partition(".")[0]):
        raise InputError(f"timm has no model {timm_name!r}; {nearest(timm_name, timm.list_models())}")
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        if file is not None:
            return _load_file(timm_name, file, head)
        return _build(timm_name, pretrained=pretrained, **({} if head else {"num_classes": 0}))
    except Exception as error:
        # Reading strangers' weights fails in as many ways as there are formats; each must end as one clear line.
        reason = " ".join(str(error).split())
        if file is not None:
            raise InputError(f"weights {file} do not fit {timm_name}: {reason[:300]}") from error
        if pretrained and "tag" not in reason:
            raise InputError(f"weights of {timm_name} cannot be fetched from the hub ({reason[:120]}); "
                             "give backbone.weights=FILE") from error  # fmt: skip
        raise InputError(f"timm cannot build {timm_name}: {reason[:300]}") from error


def _load_file(timm_name: str, file: Path, head: bool) -> nn.Module:
    """A model with the weights of a local file, every one of them.

    timm loads without checking names as soon as the classifier is left out, so the classifier is loaded with the rest
    and taken off afterwards; a file may lack the classifier, and nothing else.
    """
    options: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file), "custom_load": False}}
    try:
        model = _build(timm_name, **options)
    except RuntimeError as error:
        lacking, _, surplus = str(error).partition("Unexpected key(s)")
        names = re.findall(r'"([^"]+)"', lacking)
        if head or surplus or not names or not all(name.startswith(("head.", "classifier.", "fc.")) for name in names):
            raise
        return _build(timm_name, num_classes=0, **options)
    if not head:
        model.reset_classifier(0)
    return model


def _build(timm_name: str, **options: Any) -> Any:
    model: Any
    try:
        model = timm.create_model(timm_name, dynamic_img_size=True, **options)
    except TypeError:  # not a ViT: takes any size as it is
        model = timm.create_model(timm_name, **options)
    if _averages_untrained(model):
        model.global_pool = "token"
    return model


def _averages_untrained(model: Any) -> bool:
    """Whether timm averages patches though the model has a class token and no head that was trained on the average.

    So for DINOv3, whose authors use the class token; models pre-trained without labels have no classifier in timm.
    """
    return (
        getattr(model, "global_pool", None) == "avg"
        and getattr(model, "cls_token", None) is not None
        and isinstance(getattr(model, "fc_norm", None), nn.Identity)
        and model.pretrained_cfg.get("num_classes") == 0
    )


def stride_of(model: Any, timm_name: str) -> int:
    """Pixels along each side of a patch.

    Raises:
        InputError: a model that does not tell.
    """
    patch_embed: Any = getattr(model, "patch_embed", None)
    try:
        if hasattr(patch_embed, "patch_size") and getattr(model, "num_prefix_tokens", None) is not None:
            return int(patch_embed.patch_size[0])
        return int(model.feature_info[-1]["reduction"])
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise InputError(f"timm's {timm_name} does not tell its stride; it cannot be a backbone") from error
