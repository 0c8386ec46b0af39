"""Bounds on the sizes that configurations of strangers claim: no more is built than their files of weights hold."""

import json
from collections.abc import Callable, Iterator, Mapping
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simzss.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name."""

_DEPTH = 16  # of nested sections
_LARGEST = 2**24  # number: vocabularies have up to a million tokens, contexts as many positions
_REPEATED = {"layer": 64, "depth": 64, "block": 64, "expert": 512, "label": 2**16}
"""Parts of keys that count what a loop makes, and how many there may be though fewer tensors are there."""
_WIDTHS = ("hidden_size", "embedding_size", "d_model", "dim", "emb_dim", "n_embd")


def read_plain(path: Path) -> dict[str, Any]:
    """Read the JSON of a configuration of a stranger.

    Raises:
        ModelError: missing, broken, nested or long beyond what configurations are, no keys and values.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f"it is longer than {_LARGEST} bytes")
        found = json.loads(content.decode("utf-8"), parse_constant=_no_number)
        if not isinstance(found, dict):
            raise ValueError("it holds no keys and values")
        return found
    except RecursionError as error:
        raise ModelError(f"{path} cannot be read: it is nested too deeply") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def check_numbers(config: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse numbers of a configuration that would take forever to build, whatever its kind of model.

    Args:
        config: nested plain values.
        shapes: of the tensors that it is for.

    Raises:
        ModelError: names the key and the value.
    """
    largest = {"width": 0, "position": 0}
    for key, value in _leaves(config):
        name = key.rpartition(".")[2]
        if isinstance(value, float) and not isfinite(value):
            raise ModelError(f"{key}={value} is no finite number")
        if not isinstance(value, int):
            continue
        repeated = [most for part, most in _REPEATED.items() if part in name]
        most = max(len(shapes), *repeated) if repeated else _LARGEST
        if abs(value) > most:
            shown = value if abs(value) < 10**20 else "a longer number"
            raise ModelError(f"{key}={shown} is more than the {most} that its weights allow")
        kind = "width" if name in _WIDTHS else "position" if "position" in name else ""
        if kind:
            largest[kind] = max(largest[kind], value)
    # Some families compute a table of positions in Python, whatever the device.
    if largest["width"] * largest["position"] > 4 * _held(shapes) + _LARGEST:
        raise ModelError(
            f"{largest['position']} positions of {largest['width']} channels are more than its weights hold"
        )


def check_total(build: Callable[[], nn.Module], shapes: Shapes) -> None:
    """Refuse a model that would take far more memory than the tensors that it is filled from.

    Args:
        build: makes the model; called without memory for tensors.
        shapes: of the tensors; a model may lack half as many again, such as a pooler that nothing uses.

    Raises:
        ModelError: names both numbers.
    """
    with torch.device("meta"):
        claimed = sum(tensor.numel() for tensor in build().state_dict().values())
    if claimed > 1.5 * _held(shapes) + _LARGEST:
        raise ModelError(f"its config.json describes {claimed:,} numbers, its weights hold {_held(shapes):,}")


def _held(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.values())


def _leaves(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield nested values by their dotted keys.

    Raises:
        ModelError: nested beyond what configurations are.
    """
    if depth > _DEPTH:
        raise ModelError(f"{key[:80]}… is nested too deeply")
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _leaves(entry, f"{key}.{name}" if key else str(name), depth + 1)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _leaves(entry, key, depth + 1)
    else:
        yield key, value
