"""Zero-shot image classification on a folder of class folders."""

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from simzss.concepts.bank import read_entries
from simzss.data.benchmark import require_folder
from simzss.data.settings import Background, ClassificationSettings
from simzss.data.shards import IMAGE_SUFFIXES
from simzss.distributed import total
from simzss.errors import DataError
from simzss.evaluation.ledger import Ledger
from simzss.evaluation.results import ClassificationResult
from simzss.evaluation.vectors import image_vectors, place_model, protocol, ranks, vectors_key
from simzss.models.simzss import SimZSS
from simzss.segmentation.classifier import build_classifier
from simzss.settings.compose import find_file
from simzss.settings.renamed import in_old_names


@dataclass(frozen=True)
class ClassFolders:
    """K classes, each of one name or several, and n images: paths `names` below the root, their classes `labels`."""

    classes: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    labels: tuple[int, ...]


def classify(
    model: SimZSS,
    settings: ClassificationSettings,
    text_pooling: str | None = None,
    precision: str = "auto",
    device: torch.device | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 2,
    ledger: Ledger | None = None,
) -> ClassificationResult:
    """Label every image with the class whose vector has the largest cosine with it.

    An image is its normalised class token, squashed whole to the training size; a class is the mean over templates and
    names, as in segmentation. Ties count against the true class. Every rank gets the scores of the whole set.

    Args:
        model: moved to `device`.
        settings: folders and classes.
        text_pooling: how class names become vectors (`sentence`, `tokens`, `both`); None: the model's own.
        precision: `auto`, `bf16-mixed`, `32-true`.
        device: None for the accelerator when there is one.
        batch_size: images at a time, on each rank.
        num_workers: decoding processes of each rank.
        ledger: keeps the images' vectors, so that the same call goes on where it was stopped; None: nothing is kept.

    Raises:
        InputError: bad folder or word list, or no readable image.
    """
    text_pooling = text_pooling or model.text_pooling
    folders = read_class_folders(settings)
    device, precision = place_model(model, precision, device)
    # Class names before images: the names are quick to read and may be at fault.
    classifier = build_classifier(
        model,
        folders.classes,
        background=Background(),
        template_set=settings.templates,
        text_pooling=text_pooling,
        temperature=1.0,
    )
    found = image_vectors(
        model,
        Path(settings.root),
        folders.names,
        device=device,
        batch_size=batch_size,
        num_workers=num_workers,
        records=None if ledger is None else ledger.records(vectors_key(model, precision, folders.names)),
    )
    own = in_old_names({"classes": settings.classes, "templates": settings.templates, "text_pooling": text_pooling})
    labels = torch.tensor(folders.labels, device=device)[found.index]
    counts = total(_counts(found.vectors, labels, classifier.weights)).tolist()
    images, first, fifth = (sum(column) for column in zip(*counts, strict=True))
    return ClassificationResult(
        top1=100 * first / images,
        top5=100 * fifth / images,
        per_class={
            name: 100 * hits / seen if seen else None
            for name, (seen, hits, _) in zip(classifier.names, counts, strict=True)
        },
        images=images,
        skipped=found.skipped,
        protocol=protocol(model, settings.limit, precision, **own),
    )


def read_class_folders(settings: ClassificationSettings) -> ClassFolders:
    """Read classes and images, as torchvision's `ImageFolder` lays them out, in the order in which `limit` takes them.

    Hidden folders do not count.

    Raises:
        DataError: folder missing, no class folder, one without an image, a word list of another length.
    """
    root = require_folder(settings.root, "benchmark.root")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError(f"benchmark.root={root} holds no class folder")
    images = [_images(root, folder) for folder in folders]
    empty = [folder for folder, found in zip(folders, images, strict=True) if not found]
    if empty:
        raise DataError(f"benchmark {settings.name}: class folder {root / empty[0]} holds no image "
                        f"({', '.join(IMAGE_SUFFIXES)})")  # fmt: skip
    # The first of each class, the second of each, …: a limit must not take one class alone.
    turns = zip_longest(*images)
    pairs = [(name, label) for turn in turns for label, name in enumerate(turn) if name is not None]
    names, labels = zip(*pairs[: settings.limit], strict=True)
    return ClassFolders(_class_names(settings, folders), names, labels)


def _images(root: Path, folder: str) -> list[str]:
    """Return the image files of a class folder, sorted, as paths below the root."""
    files = (root / folder).iterdir()
    return sorted(f"{folder}/{path.name}" for path in files if path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES)


def _class_names(settings: ClassificationSettings, folders: list[str]) -> tuple[tuple[str, ...], ...]:
    if settings.classes is None:
        return tuple((folder.replace("_", " "),) for folder in folders)
    path = find_file(settings.classes, "benchmark.classes")
    classes = tuple(entry.words for entry in read_entries(path))
    if len(classes) != len(folders):
        raise DataError(f"benchmark {settings.name}: word list {path} names {len(classes)} classes, but "
                        f"{settings.root} has {len(folders)} class folders")  # fmt: skip
    return classes


def _counts(vectors: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Count this rank's images of each class (K, 3): how many, found first, found among the first five."""
    classes = torch.arange(len(weights), device=weights.device)
    found = ranks(vectors, labels, weights, classes).to(labels.device)
    columns = [labels, labels[found <= 1], labels[found <= 5]]
    return torch.stack([torch.bincount(column, minlength=len(weights)) for column in columns], dim=1)
