"""Pixel counts per image: what a comparison of two runs resamples.

One safetensors file per benchmark: tensors `per_image` and `confusion`, metadata `images` and `classes` as JSON lists.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from simzss.errors import InputError

__all__ = [
    "Counts",
    "class_counts",
    "counts_file",
    "load_counts",
    "miou",
    "mious",
    "ranked_images",
    "save_counts",
]


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
    """Where a run keeps the counts of a benchmark, measured with `plain` or `engineered` class names."""
    suffix = "" if names == "plain" else f"_{names}"
    return run / "counts" / f"{benchmark}{suffix}.safetensors"


def class_counts(confusion: Tensor) -> Tensor:
    """(K, 3) intersection, predicted pixels and truth pixels of a (K, K) confusion matrix, of one image or of all."""
    return torch.stack([confusion.diagonal(), confusion.sum(dim=0), confusion.sum(dim=1)], dim=1)


def mious(sums: Tensor) -> Tensor:
    """mIoU in per cent of any number of sums.

    IoU of a class = intersection / (predicted + truth - intersection); a class without a pixel in truth and prediction
    is left out of the mean, as in `metrics.scores`.

    Args:
        sums: (..., K, 3) intersection, predicted pixels, truth pixels.

    Returns:
        (...) float64; nan where no class has a pixel.
    """
    hit, predicted, truth = sums.double().unbind(dim=-1)
    union = predicted + truth - hit
    occurs = union > 0
    iou = torch.where(occurs, 100 * hit / union, 0)
    return iou.sum(dim=-1) / occurs.sum(dim=-1)


def miou(per_image_sum: Tensor) -> float:
    """mIoU in per cent of (K, 3) summed counts; nan if no class has a pixel."""
    return float(mious(per_image_sum))


def ranked_images(counts: Counts) -> list[tuple[str, float]]:
    """Images with their own mIoU in per cent, the worst first; those without a pixel that counts are left out."""
    scored = zip(counts.images, mious(counts.per_image).tolist(), strict=True)
    # By name where equal, so that the order does not depend on that of the files.
    return sorted(((name, score) for name, score in scored if not math.isnan(score)), key=lambda pair: pair[::-1])


def save_counts(path: Path, counts: Counts) -> None:
    """Write one file; whole or not at all.

    Raises:
        InputError: counts that do not fit together, or a file that cannot be written.
    """
    _check(str(path), counts)
    metadata = {"images": json.dumps(counts.images), "classes": json.dumps(counts.classes)}
    tensors = {"per_image": counts.per_image.cpu().contiguous(), "confusion": counts.confusion.cpu().contiguous()}
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error


def load_counts(path: Path) -> Counts:
    """Read what `save_counts` wrote.

    Raises:
        InputError: missing, unreadable, or not such a file.
    """
    if not path.is_file():
        raise InputError(f"counts {path} do not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("per_image", "confusion")}
        names = {key: json.loads(metadata[key]) for key in ("images", "classes")}
    except KeyError as error:
        raise InputError(f"counts {path} lack the metadata {error}") from error
    except Exception as error:
        # safetensors raises its own Rust-made type on a broken file and on a missing tensor.
        raise InputError(f"counts {path} cannot be read: {error}") from error
    for key, value in names.items():
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise InputError(f"counts {path}: the metadata {key} is no list of names")
    counts = Counts(tuple(names["images"]), tuple(names["classes"]), tensors["per_image"], tensors["confusion"])
    _check(str(path), counts)
    return counts


def _check(where: str, counts: Counts) -> None:
    """Refuse counts whose parts contradict one another."""
    n, k = len(counts.images), len(counts.classes)
    for name, tensor, shape in (("per_image", counts.per_image, (n, k, 3)), ("confusion", counts.confusion, (k, k))):
        if tensor.dtype != torch.int64 or tuple(tensor.shape) != shape:
            raise InputError(
                f"counts {where}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"expected torch.int64 of {shape} for {n} images and {k} classes"
            )
    twice = [name for name, number in Counter(counts.images).items() if number > 1]
    if twice:
        raise InputError(f"counts {where}: image {twice[0]!r} is in it twice")
    hit, predicted, truth = counts.per_image.unbind(dim=-1)
    if bool(((hit < 0) | (hit > predicted) | (hit > truth)).any()):
        raise InputError(f"counts {where}: per_image has an intersection outside 0..predicted or truth")
    if not torch.equal(counts.per_image.sum(dim=0), class_counts(counts.confusion)):
        raise InputError(f"counts {where}: per_image does not add up to confusion")
