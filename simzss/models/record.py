"""Reading `config.json` of a model folder strictly: every key is known, every number is one that its weights allow."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from simzss.errors import ModelError, nearest
from simzss.models.settings import BackboneSettings, MaskHeadSettings, PretrainedText, ProxySettings, ScratchText
from simzss.models.sizes import Shapes, check_numbers, read_plain
from simzss.settings.renamed import in_old_names

FORMAT_VERSION = 1
BACKBONE_KEYS = ("name", "timm_name", "weights", "features", "project", "image_size")

_PROXY = tuple(in_old_names(ProxySettings().plain(), "proxy."))
_HEAD = tuple(in_old_names(MaskHeadSettings().plain(), "mask_head."))
_CLOSED: dict[str, tuple[str, ...]] = {
    "": ("format_version", "simzss", "backbone", "feature_norm", "text", "settings", "multires"),
    "backbone": (*BACKBONE_KEYS, "fingerprint", "proxy"),
    "backbone.proxy": (*_PROXY, "fingerprint"),
    "text": ("body", "pooling", "context_length", "tokenizer"),
    "multires": ("head", "trained"),
    "multires.head": _HEAD,
    "settings.untrained": ("backbone", "text", "seed"),
    "settings.untrained.backbone": (*BackboneSettings.model_fields, "proxy"),
    "settings.untrained.backbone.proxy": _PROXY,
    "settings.untrained.text": (*ScratchText.model_fields, *PretrainedText.model_fields),
}
"""Sections that hold these keys and no others."""
_INFO = ("readout", "untrained", "steps", "head_steps", "text_weights")


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a model folder.

    Raises:
        ModelError: missing, broken, of another format version, with a key that is unknown or misspelt.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{folder} is no model folder: it has no config.json")
    config = read_plain(path)
    version = config.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise ModelError(f"{path} has format version {str(version)[:40]}; this program reads version {FORMAT_VERSION}")
    for key, known in _CLOSED.items():
        _check_section(path, config, key, known)
    return config


def check_record(path: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse what the sections of no fixed keys claim.

    Args:
        path: of the file.
        config: its content.
        shapes: of the tensors beside it.

    Raises:
        ModelError: a key that is nearly a known one, a number beyond what the tensors allow; names it.
    """
    body = config["text"]["body"]
    if isinstance(body, Mapping):
        known = AutoConfig.for_model(body["model_type"]).to_dict()
        _refuse_misspelt(path, "text.body", body, {*known, "model_type"})
    _refuse_misspelt(path, "settings", config["settings"], _INFO)
    try:
        check_numbers({key: config[key] for key in ("text", "multires") if key in config}, shapes)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _check_section(path: Path, config: dict[str, Any], key: str, known: Iterable[str]) -> None:
    section: Any = config
    for name in key.split(".") if key else ():
        section = section.get(name)
        if section is None:
            return
        if not isinstance(section, dict):
            raise ModelError(f"{path}: {key} is no section of keys and values")
    for name in section:
        if name not in known:
            raise ModelError(f"{path}: {f'{key}.{name}'.lstrip('.')} is unknown; {nearest(name, known)}")


def _refuse_misspelt(path: Path, key: str, section: Any, known: Iterable[str]) -> None:
    """Refuse an unknown key near a known one that is not there; other releases and users have keys of their own."""
    if not isinstance(section, Mapping):
        raise ModelError(f"{path}: {key} is no section of keys and values")
    absent = sorted(set(known) - set(section))
    for name in sorted(set(section) - set(known)):
        if close := difflib.get_close_matches(name, absent, n=1, cutoff=0.8):
            raise ModelError(f"{path}: {key}.{name} is unknown; did you mean {close[0]}?")
