"""Models of transformers from local folders and the hub, filled through `read_tensors`.

transformers' own loading follows what a folder names: other files of weights, adapters and their base models,
quantisation, kernels. Here a folder gives its configuration and its safetensors, and nothing else of it is asked.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from simzss.errors import ModelError
from simzss.models.sizes import check_numbers, check_total, read_plain
from simzss.models.tensors import read_tensors, tensor_shapes

_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors")


def fetch(name: str, key: str) -> Path:
    """Return a local folder: `name` itself, or the copy of the hub repository `owner/name`.

    Raises:
        ModelError: neither; names the key of the settings.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or len(path.parts) != 2 or path.is_absolute() or name.startswith((".", "~")):
        raise ModelError(f"{key}={name} {'is no folder' if path.exists() else 'does not exist'}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:
        # Offline, private, missing: the hub client has a type for each, and all mean the same here.
        raise ModelError(f"{key}={name} does not exist here and cannot be fetched from the hub: "
                         f"{reason(error)}") from error  # fmt: skip


def read_pretrained_config(folder: Path, kind: Any = AutoConfig) -> Any:
    """Read the configuration of a transformers folder, of a kind that transformers knows.

    Args:
        folder: with `config.json`.
        kind: class of the configuration, where the file's own is not the one to build.

    Raises:
        ModelError: missing, broken, of a kind that needs code of its own, quantised.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json")
    check_plain(folder)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        config: Any = kind.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:
        # A broken file fails in as many ways as it can be broken.
        raise ModelError(f"{path} is no configuration of a model of transformers: {reason(error)}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{path} is of quantised weights, which are not read")
    config.fusion_config = None  # would change the classes of the library
    return without_kernel(config)


def check_plain(folder: Path) -> None:
    """Refuse a configuration whose numbers its weights do not allow, before a library makes anything of them.

    Raises:
        ModelError: see `weight_files`, `tensor_shapes` and `check_numbers`.
    """
    try:
        check_numbers(read_plain(folder / "config.json"), _shapes(folder))
    except ModelError as error:
        raise ModelError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error


def load_pretrained(
    family: Any, folder: Path, config: Any, wanted: Callable[[str], bool] | None = None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Build a model in float32 on the safetensors of a folder.

    Args:
        family: class of transformers.
        folder: see `weight_files`.
        config: what to build.
        wanted: tells by its name whether a tensor is read; None: all.
        options: of the class's `from_pretrained`.

    Returns:
        The model, and transformers' account of missing, unexpected and misshapen tensors.

    Raises:
        ModelError: no such files, broken ones, sizes beyond what they hold.
    """
    tensors: dict[str, Tensor] = {}
    try:
        check_total(lambda: family(config), _shapes(folder))
        for file in weight_files(folder):
            tensors |= read_tensors(file, wanted)
        model, loading = family.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True, **options
        )
    except ModelError as error:
        raise ModelError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    except Exception as error:
        # A configuration can be wrong in any value; transformers checks few of them.
        raise ModelError(f"{folder} describes no model that its weights fit: {reason(error)}") from error
    model.config.name_or_path = str(folder)
    return model, loading


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {name: shape for file in weight_files(folder) for name, shape in tensor_shapes(file).items()}


def weight_files(folder: Path) -> list[Path]:
    """Return `model.safetensors` of a folder, or its parts `model-*.safetensors`.

    Raises:
        ModelError: there are none.
    """
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no model.safetensors; formats that may hold code (.bin, .pt) are not read")
    return files


def without_kernel(config: Any) -> Any:
    """Reset the attention to transformers' choice: another name may be code to fetch from the hub."""
    config._attn_implementation = None
    return config


def reason(error: BaseException) -> str:
    """Return a short line about an error of a library."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
