"""Pixel counts per image: what a comparison of two runs resamples.

One safetensors file per benchmark: tensors `per_image` and `confusion`, metadata `images` and `classes` as JSON lists.
"""

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from simzss.atomic import atomic_write, pack_tensors
from simzss.errors import DataError
from simzss.evaluation.metrics import class_counts, mious


@dataclass(frozen=True, eq=False)
class Counts:
    """Pixels of one benchmark, image by image.

    Only pixels that count are in it, those with an ignored truth are not; `confusion` is the sum over the images.

    Attributes:
        images: n names, each once.
        classes: K names.
        per_image: (n, K, 3) int64: intersection, predicted pixels, truth pixels of each class in each image.
        confusion: (K, K) int64, pixels of the row's class that were labelled as the column's.
    """

    images: tuple[str, ...]
    classes: tuple[str, ...]
    per_image: Tensor
    confusion: Tensor


def counts_file(run: Path, benchmark: str, names: str = "plain") -> Path:
    """Return the file of a benchmark's counts in a run's folder, for `plain` or `engineered` class names."""
    suffix = "" if names == "plain" else f"_{names}"
    return run / "counts" / f"{benchmark}{suffix}.safetensors"


def ranked_images(counts: Counts) -> list[tuple[str, float]]:
    """Sort images by their own mIoU in per cent, the worst first; those without a pixel that counts are left out."""
    scored = zip(counts.images, mious(counts.per_image).tolist(), strict=True)
    # By name where equal, so that the order does not depend on that of the files.
    return sorted(((name, score) for name, score in scored if not math.isnan(score)), key=lambda pair: pair[::-1])


def save_counts(path: Path, counts: Counts) -> None:
    """Write one file atomically.

    Raises:
        DataError: counts that do not fit together, or a file that cannot be written.
    """
    _check(str(path), counts)
    metadata = {"images": json.dumps(counts.images), "classes": json.dumps(counts.classes), "sha256": _sha256(counts)}
    tensors = {"per_image": counts.per_image.cpu(), "confusion": counts.confusion.cpu()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, pack_tensors(tensors, metadata))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error


def load_counts(path: Path) -> Counts:
    """Read what `save_counts` wrote.

    Raises:
        DataError: missing, unreadable, or not such a file.
    """
    if not path.is_file():
        raise DataError(f"counts {path} do not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("per_image", "confusion")}
        names = {key: json.loads(metadata[key]) for key in ("images", "classes")}
    except KeyError as error:
        raise DataError(f"counts {path} lack the metadata {error}") from error
    except Exception as error:
        # safetensors raises its own Rust-made type on a broken file and on a missing tensor.
        raise DataError(f"counts {path} cannot be read: {error}") from error
    for key, value in names.items():
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise DataError(f"counts {path}: the metadata {key} is no list of names")
    counts = Counts(tuple(names["images"]), tuple(names["classes"]), tensors["per_image"], tensors["confusion"])
    _check(str(path), counts)
    if metadata.get("sha256", _sha256(counts)) != _sha256(counts):  # version 0.1 wrote none
        raise DataError(f"counts {path} are damaged: their SHA-256 is another")
    return counts


def _sha256(counts: Counts) -> str:
    """Return the hash of names and numbers."""
    digest = hashlib.sha256(json.dumps([counts.images, counts.classes]).encode())
    for tensor in (counts.per_image, counts.confusion):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check(where: str, counts: Counts) -> None:
    """Reject counts whose parts contradict one another."""
    n, k = len(counts.images), len(counts.classes)
    for name, tensor, shape in (("per_image", counts.per_image, (n, k, 3)), ("confusion", counts.confusion, (k, k))):
        if tensor.dtype != torch.int64 or tuple(tensor.shape) != shape:
            raise DataError(
                f"counts {where}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"expected torch.int64 of {shape} for {n} images and {k} classes"
            )
    twice = [name for name, number in Counter(counts.images).items() if number > 1]
    if twice:
        raise DataError(f"counts {where}: image {twice[0]!r} is in it twice")
    hit, predicted, truth = counts.per_image.unbind(dim=-1)
    if bool(((hit < 0) | (hit > predicted) | (hit > truth)).any()):
        raise DataError(f"counts {where}: per_image has an intersection outside 0..predicted or truth")
    if not torch.equal(counts.per_image.sum(dim=0), class_counts(counts.confusion)):
        raise DataError(f"counts {where}: per_image does not add up to confusion")
