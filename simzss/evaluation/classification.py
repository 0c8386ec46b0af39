"""Zero-shot image classification on a folder of class folders."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simzss.concepts.bank import read_entries
from simzss.config import find_file
from simzss.data.shards import IMAGE_SUFFIXES
from simzss.distributed import total
from simzss.errors import InputError
from simzss.evaluation.vectors import check_limit, image_vectors, place_model, ranks, skipped_records
from simzss.models.simzss import SimZSS
from simzss.segmentation.background import Background
from simzss.segmentation.classifier import build_classifier


@dataclass(frozen=True)
class ClassificationConfig:
    """A folder for each class with its images in it, as torchvision's `ImageFolder` lays them out.

    Args:
        name: of the benchmark, key of the results.
        root: folder of the class folders; hidden ones do not count.
        classes: word list whose entry i names the i-th class folder in sorted order, below the current or the
            configuration folder; null takes the folders' names, with spaces for underscores.
        templates: name of a set of prompt templates.
        limit: so many images, taken from the classes in turn; null for all.
    """

    name: str
    root: str
    classes: str | None
    templates: str
    limit: int | None = None

    def __post_init__(self) -> None:
        check_limit(self.limit)


@dataclass(frozen=True)
class ClassFolders:
    """K classes, each of one name or several, and n images: paths `names` below the root, their classes `labels`."""

    classes: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    labels: tuple[int, ...]


def classify(
    model: SimZSS,
    config: ClassificationConfig,
    readout: str,
    precision: str = "auto",
    device: torch.device | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 2,
) -> dict[str, Any]:
    """Label every image with the class whose vector has the largest cosine with it.

    An image is its normalised class token, squashed whole to the training size; a class is the mean over templates and
    names, as in segmentation. Ties count against the true class.

    Args:
        model: moved to `device`.
        config: what to read.
        readout: how class names become vectors (`sentence`, `concept`, `both`).
        precision: `auto`, `bf16-mixed`, `32-true`.
        device: None for the accelerator when there is one.
        batch_size: images at a time, on each rank.
        num_workers: decoding processes of each rank.

    Returns:
        `kind`, `top1` and `top5` in per cent of the readable images, `per_class` top-1 by name (None for a class of
        which no image counted), `images` counted, `skipped` with names and reasons, `protocol`; on every rank the
        scores of the whole set.

    Raises:
        InputError: bad setting, folder or word list, or no readable image.
    """
    folders = read_class_folders(config)
    device, precision = place_model(model, precision, device)
    # Class names before images: the names are quick to read and may be at fault.
    classifier = build_classifier(
        model,
        folders.classes,
        background=Background(),
        template_set=config.templates,
        readout=readout,
        temperature=1.0,
    )
    found = image_vectors(
        model, Path(config.root), folders.names, device=device, batch_size=batch_size, num_workers=num_workers
    )
    labels = torch.tensor(folders.labels, device=device)[found.index]
    counts = total(_counts(found.vectors, labels, classifier.weights)).tolist()
    images, first, fifth = (sum(column) for column in zip(*counts, strict=True))
    return {
        "kind": "classification",
        "top1": 100 * first / images,
        "top5": 100 * fifth / images,
        "per_class": {
            name: 100 * hits / seen if seen else None
            for name, (seen, hits, _) in zip(classifier.names, counts, strict=True)
        },
        "images": images,
        "skipped": skipped_records(found.skipped),
        "protocol": {
            "image": "whole, squashed",
            "image_size": model.backbone.image_size,
            "classes": config.classes,
            "templates": config.templates,
            "readout": readout,
            "ties": "count against",
            "limit": config.limit,
            "precision": precision,
        },
    }


def read_class_folders(config: ClassificationConfig) -> ClassFolders:
    """Classes and images of the folder, images in the order in which `limit` takes them.

    Raises:
        InputError: folder missing, no class folder, one without an image, a word list of another length.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise InputError(f"benchmark.root={root} is no folder")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise InputError(f"benchmark.root={root} holds no class folder")
    images = [_images(root, folder) for folder in folders]
    empty = [folder for folder, found in zip(folders, images, strict=True) if not found]
    if empty:
        raise InputError(f"benchmark {config.name}: class folder {root / empty[0]} holds no image "
                         f"({', '.join(IMAGE_SUFFIXES)})")  # fmt: skip
    # The first of each class, the second of each, …: a limit must not take one class alone.
    turns = zip_longest(*images)
    pairs = [(name, label) for turn in turns for label, name in enumerate(turn) if name is not None][: config.limit]
    names, labels = zip(*pairs, strict=True)
    return ClassFolders(_class_names(config, folders), names, labels)


def _images(root: Path, folder: str) -> list[str]:
    """Image files of a class folder, sorted, as paths below the root."""
    files: Iterable[Path] = (root / folder).iterdir()
    return sorted(f"{folder}/{path.name}" for path in files if path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES)


def _class_names(config: ClassificationConfig, folders: list[str]) -> tuple[tuple[str, ...], ...]:
    if config.classes is None:
        return tuple((folder.replace("_", " "),) for folder in folders)
    path = find_file(config.classes)
    classes = tuple(entry.words for entry in read_entries(path))
    if len(classes) != len(folders):
        raise InputError(f"benchmark {config.name}: word list {path} names {len(classes)} classes, but "
                         f"{config.root} has {len(folders)} class folders")  # fmt: skip
    return classes


def _counts(vectors: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """(K, 3) of this rank's images of each class: how many, found first, found among the first five."""
    classes = torch.arange(len(weights), device=weights.device)
    found = ranks(vectors, labels, weights, classes).to(labels.device)
    columns = [labels, labels[found <= 1], labels[found <= 5]]
    return torch.stack([torch.bincount(column, minlength=len(weights)) for column in columns], dim=1)
