"""One file of features: safetensors, written whole or not at all and hashed on the way, read memory-mapped.

`cls` (n, V, D), `patches` (n, V, N, D), with int8 `scale` (n, V, N) float32, and `texts`, UTF-8 JSON as uint8:

    {"images": [[key, [caption, …]], …], "skipped": [[key, reason], …]}

The metadata says of which run and shard they are. The library reads these files; they are written here, by the
published layout, since the library writes metadata in an order that changes from run to run, where equal content must
have equal bytes (checksums, resuming), and copies every tensor before it writes, where this writes and hashes a stream.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import BaseModel
from safetensors import safe_open
from torch import Tensor

from simzss.atomic import atomic_write
from simzss.checksums import sha256_of
from simzss.concepts.concept import Caption
from simzss.data.shards import Skipped
from simzss.errors import DataError

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8"}
_BLOCK = 1 << 22  # bytes that are hashed and written while they are in the processor's cache
_ALIGNMENT = 64  # of the first tensor


class FileRecord(BaseModel, frozen=True):
    """Description of a file in the index."""

    name: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ImageTexts:
    """Key and captions of one image."""

    key: str
    captions: tuple[Caption, ...]


@dataclass
class FeatureFile:
    """Content of a file; its tensors are memory-mapped: no byte of theirs is read before it is used."""

    tensors: dict[str, Tensor]
    texts: list[ImageTexts]
    skipped: tuple[Skipped, ...]
    metadata: dict[str, str]


def write_features(
    path: Path,
    tensors: Mapping[str, Tensor],
    texts: Sequence[ImageTexts],
    skipped: Iterable[Skipped],
    metadata: Mapping[str, str],
) -> FileRecord:
    """Write a file of features.

    Raises:
        OSError: the disk is full, or the file cannot be written for another reason; nothing is left.
    """
    content = dict(tensors) | {"texts": _pack_texts(texts, skipped)}
    # Largest elements first, so that each tensor lies at a multiple of its own.
    order = sorted(content, key=lambda name: (-content[name].element_size(), name))
    buffers: list[Any] = [content[name].contiguous().view(-1).view(torch.uint8).numpy() for name in order]
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, buffer in zip(order, buffers, strict=True):
        start, end = end, end + len(buffer)
        shape = list(content[name].shape)
        entries[name] = {"dtype": _DTYPES[content[name].dtype], "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(len(header) + 8) % _ALIGNMENT)
    digest = hashlib.sha256()

    def write(stream: BinaryIO) -> None:
        start_of_file = len(header).to_bytes(8, "little") + header
        for view in [memoryview(start_of_file), *(memoryview(buffer) for buffer in buffers)]:
            for start in range(0, len(view), _BLOCK):
                block = view[start : start + _BLOCK]
                digest.update(block)
                stream.write(block)

    atomic_write(path, write)
    size = 8 + len(header) + end
    return FileRecord(name=path.name, images=len(texts), bytes=size, sha256=digest.hexdigest())


def open_features(path: Path) -> FeatureFile:
    """Read the texts of a file and map its tensors.

    Raises:
        DataError: it is missing, or not what `write_features` wrote.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        texts, skipped = _unpack_texts(tensors.pop("texts"), metadata["shard"])
    except Exception as error:
        # safetensors raises its own Rust-made type on a broken file; the texts may be anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read ({reason[:200]}): remove it and run simzss cache again") from error
    return FeatureFile(tensors, texts, skipped, metadata)


def find_damage(path: Path, record: FileRecord) -> str | None:
    """Compare size and SHA-256 of a file with its record; returns what is wrong, None for nothing."""
    try:
        if path.stat().st_size == record.bytes:
            return None if sha256_of(path) == record.sha256 else "is corrupted (its SHA-256 has changed)"
    except OSError:
        pass
    return "is missing or of another size"


def _pack_texts(texts: Sequence[ImageTexts], skipped: Iterable[Skipped]) -> Tensor:
    record = {
        "images": [[image.key, [caption.to_json() for caption in image.captions]] for image in texts],
        "skipped": [[entry.key, entry.reason] for entry in skipped],
    }
    # Half a surrogate pair, as names may hold, has no bytes: it becomes a JSON escape.
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _unpack_texts(packed: Tensor, shard: str) -> tuple[list[ImageTexts], tuple[Skipped, ...]]:
    record = json.loads(packed.numpy().tobytes())
    images = [
        ImageTexts(str(key), tuple(Caption.from_json(caption) for caption in captions))
        for key, captions in record["images"]
    ]
    return images, tuple(Skipped(str(key), str(reason), shard) for key, reason in record["skipped"])
