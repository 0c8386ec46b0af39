"""Keys of version 0.1 that have another name now. They work for one version, with a warning of one line each."""

import logging
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


def _new_key(key: str) -> str:
    head, dot, rest = key.partition(".")
    key = KEYS.get(head, head) + dot + rest
    return KEYS.get(key, key)
