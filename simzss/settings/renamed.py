"""Names of version 0.1 that are other ones now: the one table of them.

Typed keys of old names work for one version, with a warning of one line each. Model folders and results keep the old
names as their format."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

KEYS = {
    "readout": "text_pooling",
    "correlate": "aggregate",
    "multires": "mask_head",
    "mask_head.learned_share": "mask_head.ensemble_alpha",
    "mask_head.unseen_share": "mask_head.ensemble_beta",
    "proxy.shift": "proxy.beta",
    "proxy.gain": "proxy.gamma",
    "mask_loss.no_object": "mask_loss.eos_coef",
    "mask_loss.points": "mask_loss.num_points",
    "mask_loss.oversample": "mask_loss.oversample_ratio",
    "mask_loss.important": "mask_loss.importance_sample_ratio",
    "masks.photos": "masks.limit",
    "masks.hidden": "masks.exclude_classes",
}
"""Old key to new one, group first: a renamed group comes before its keys."""

VALUES = {
    ("text_pooling", "concept"): "tokens",
    ("inference", "splice"): "stitch",
    ("protocol.inference", "splice"): "stitch",
}
"""(new key, old value) to new value."""

_OLD_LEAVES = {new: old.rpartition(".")[2] for old, new in KEYS.items()}
_OLD_VALUES = {(key, new): old for (key, old), new in VALUES.items()}


def renamed(key: str, value: Any, quiet: bool = False) -> tuple[str, Any]:
    """Return a typed key and value in today's names, with a warning where they had others."""
    new = _new_key(key)
    word = VALUES.get((new, value), value) if isinstance(value, str) else value
    if (new, word) != (key, value) and not quiet:
        log.warning("%s=%s is now %s=%s; the old name goes with the next version", key, value, new, word)
    return new, word


def renamed_file(values: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a file in today's names, without a warning: files of earlier runs are no mistake."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        new = _new_key(f"{prefix}{key}")
        if isinstance(value, dict):
            value = renamed_file(value, f"{new}.")
        elif isinstance(value, str):
            value = VALUES.get((new, value), value)
        found[new.removeprefix(prefix)] = value
    return found


def in_old_names(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values in the names of version 0.1, as formats of files keep them: undoes `renamed_file`.

    Args:
        values: in today's names.
        prefix: today's key of the section that they are, such as `proxy.`.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        new = f"{prefix}{key}"
        if isinstance(value, Mapping):
            value = in_old_names(value, f"{new}.")
        elif isinstance(value, str):
            value = _OLD_VALUES.get((new, value), value)
        found[_OLD_LEAVES.get(new, key)] = value
    return found


def _new_key(key: str) -> str:
    head, dot, rest = key.partition(".")
    key = KEYS.get(head, head) + dot + rest
    return KEYS.get(key, key)
