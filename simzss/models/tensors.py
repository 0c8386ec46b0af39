"""The one place where files of weights are read: nothing in them is executed, and no size in them is believed.

safetensors files hold no code. torch's own files are pickles: they are read with `weights_only=True`, which builds
tensors and plain containers and nothing else.
"""

import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simzss.errors import ModelError

_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training programs keep the tensors in a file that holds more, the best ones first."""


def read_tensors(path: Path, wanted: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """Read tensors by name, on the CPU, from a safetensors file or one of `torch.save`; the content tells which.

    Args:
        path: the file.
        wanted: tells by its name whether a tensor is read; None: all.

    Raises:
        ModelError: missing, broken, code in it, no tensors by name, sizes that the file does not hold, or a value that
            is no number; names the file.
    """
    with _naming(path):
        found = _safetensors(path, wanted) if _is_safetensors(path) else _torch(path, wanted)
        if not found and wanted is None:
            raise ValueError("it holds no tensors by name")
        # A mask of attention is minus infinity where it hides.
        damaged = [name for name, tensor in found.items() if not name.endswith("mask") and not _is_finite(tensor)]
    if damaged:
        raise ModelError(f"{path}: {damaged[0]} holds values that are no finite numbers: it is damaged")
    return found


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a safetensors file's tensors by name, and none of the tensors.

    Raises:
        ModelError: missing, broken or of another format; names the file.
    """
    with _naming(path), safe_open(path, framework="pt", device="cpu") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file into one line that names it."""
    try:
        if not path.is_file():
            raise ValueError("it does not exist" if not path.exists() else "it is no file")
        if not path.stat().st_size:
            raise ValueError("it is empty")
        yield
    except MemoryError:
        raise
    except SafetensorError as error:
        raise ModelError(f"{path} cannot be read: it is no safetensors file, or a broken one ({error})") from error
    except Exception as error:
        # Broken archives, pickles of objects and files of other kinds each fail with a type of their own.
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelError(f"{path} cannot be read: {reason}") from error


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    # torch cannot tell it of the smallest types.
    return bool((tensor if tensor.itemsize > 1 else tensor.float()).isfinite().all())


def _is_safetensors(path: Path) -> bool:
    """Tell by the first bytes: the length of a header, and its opening brace."""
    with path.open("rb") as stream:
        start = stream.read(9)
    return start[8:] == b"{"


def _safetensors(path: Path, wanted: Callable[[str], bool] | None) -> dict[str, Tensor]:
    with safe_open(path, framework="pt", device="cpu") as file:
        names = [name for name in file.keys() if wanted is None or wanted(name)]  # noqa: SIM118 - it is no mapping
        return {name: file.get_tensor(name) for name in names}


def _torch(path: Path, wanted: Callable[[str], bool] | None) -> dict[str, Tensor]:
    _check_archive(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles of another protocol: they end as an error here
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping):
        content = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("it holds no tensors by name")
    tensors = dict(_named(content))
    size = path.stat().st_size
    for name, tensor in tensors.items():
        # A view of a few stored bytes can claim any shape, and fills the memory when it is copied.
        if tensor.is_meta or tensor.numel() * tensor.element_size() > size:
            raise ValueError(f"{name} claims {tuple(tensor.shape)}, more than the file holds")
    return {name: tensor for name, tensor in tensors.items() if wanted is None or wanted(name)}


def _named(content: Mapping[Any, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors by their names, without the prefixes of data-parallel and compiled models."""
    for name, tensor in content.items():
        yield re.sub(r"^(module\.|_orig_mod\.)+", "", str(name)), tensor


def _check_archive(path: Path) -> None:
    """Refuse an archive with compressed members: torch stores them plainly, and a small one may unpack to gigabytes."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is a compressed archive, none of torch's")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its members are larger than the file")
