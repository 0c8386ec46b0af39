"""The field's segmentation metric: one confusion matrix over the whole data set."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric


@dataclass(frozen=True)
class Scores:
    """mIoU, pixel accuracy and IoU per class in per cent; None where no pixel counts."""

    miou: float | None
    aacc: float | None
    per_class: dict[str, float | None]


@dataclass(frozen=True)
class SeenScores:
    """mIoU in per cent over classes that were trained with masks, over the others, and their harmonic mean."""

    seen: float | None
    unseen: float | None
    harmonic: float | None


class ConfusionMatrix(Metric):
    """Integer confusion matrix of pixels; exact, the same in whatever order images come, summed over processes.

    Args:
        num_classes: K.
        num_images: n, to count per image too; 0 for not.
    """

    matrix: Tensor
    per_image: Tensor
    full_state_update = False

    def __init__(self, num_classes: int, num_images: int = 0) -> None:
        super().__init__()
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("matrix", default=zeros, dist_reduce_fx="sum")
        counts = torch.zeros(num_images, num_classes, 3, dtype=torch.int64)
        self.add_state("per_image", default=counts, dist_reduce_fx="sum")

    def update(self, counts: Tensor, image: int | None = None) -> None:
        """Add what `count_pixels` found in an image.

        Args:
            counts: (K, K).
            image: its number, whose hits, predicted and true pixels of each class `per_image[image]` counts.
        """
        self.matrix += counts
        if image is not None:
            self.per_image[image] += class_counts(counts)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the (K, K) matrix and the (n, K, 3) counts of each image."""
        return self.matrix, self.per_image


def count_pixels(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count pixels by target and prediction.

    Args:
        prediction: integer labels 0..K-1.
        target: labels of the same shape, 0..K-1 or `ignore_index`.
        num_classes: K.
        ignore_index: label of pixels that do not count.

    Returns:
        (K, K) int64: `[t, p]` is the number of pixels of class t that were labelled p.

    Raises:
        ValueError: a label outside.
    """
    counted = target != ignore_index
    target, prediction = target[counted].long(), prediction[counted].long()
    for name, values in (("target", target), ("prediction", prediction)):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            raise ValueError(f"{name} label outside 0..{num_classes - 1}: {int(values.min())}..{int(values.max())}")
    flat = torch.bincount(target * num_classes + prediction, minlength=num_classes**2)
    return flat.view(num_classes, num_classes)


def sparse(counts: Tensor) -> dict[str, Tensor]:
    """Return the `cells` of counts that are not 0, as places in the flat tensor, and their `pixels`."""
    flat = counts.flatten()
    cells = flat.nonzero()[:, 0]
    return {"cells": cells.int(), "pixels": flat[cells]}


def dense(found: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    """Return counts from what `sparse` made of them."""
    flat = torch.zeros(math.prod(shape), dtype=torch.int64)
    flat[found["cells"].long()] = found["pixels"]
    return flat.view(*shape)


def class_counts(confusion: Tensor) -> Tensor:
    """Return (K, 3) intersection, predicted pixels and truth pixels of a (K, K) confusion matrix."""
    return torch.stack([confusion.diagonal(), confusion.sum(dim=0), confusion.sum(dim=1)], dim=1)


def class_ious(counts: Tensor) -> Tensor:
    """Compute IoU per class in per cent, in float64.

    IoU of a class = intersection / (predicted + truth - intersection).

    Args:
        counts: (..., K, 3) sums as `class_counts` returns.

    Returns:
        (..., K); nan for a class without a pixel in truth and prediction.
    """
    hit, predicted, truth = counts.double().unbind(dim=-1)
    return 100 * hit / (predicted + truth - hit)  # 0 / 0 = nan marks absent classes


def mious(counts: Tensor) -> Tensor:
    """Compute mIoU in per cent, in float64: the mean over classes that occur (Everingham et al. 2010).

    Args:
        counts: (..., K, 3) sums as `class_counts` returns.

    Returns:
        (...); nan where no class has a pixel.
    """
    return class_ious(counts).nanmean(dim=-1)


def scores(matrix: Tensor, class_names: Sequence[str]) -> Scores:
    """Compute the scores of a (K, K) confusion matrix of a whole data set, each pixel counted once, not per image."""
    ious = class_ious(class_counts(matrix))
    present = ious[~ious.isnan()]
    pixels = float(matrix.sum())
    return Scores(
        float(present.mean()) if len(present) else None,
        100 * float(matrix.diagonal().sum()) / pixels if pixels else None,
        {name: None if math.isnan(iou) else iou for name, iou in zip(class_names, ious.tolist(), strict=True)},
    )


def seen_scores(per_class: Mapping[str, float | None], seen: Collection[str]) -> SeenScores:
    """Compute mIoU of seen and of unseen classes and its harmonic mean (Xian et al. 2019, section 5.1).

    Args:
        per_class: IoU in per cent by class, None for classes that do not occur.
        seen: names of classes that were trained with masks.

    Returns:
        None where no such class occurs.
    """
    parts: dict[bool, list[float]] = {True: [], False: []}
    for name, value in per_class.items():
        if value is not None:
            parts[name in seen].append(value)
    known, unknown = (sum(part) / len(part) if part else None for part in (parts[True], parts[False]))
    harmonic = None
    if known is not None and unknown is not None:
        harmonic = 2 * known * unknown / (known + unknown) if known + unknown else 0.0
    return SeenScores(known, unknown, harmonic)


def largest_confusions(matrix: Tensor, class_names: Sequence[str], count: int) -> list[str]:
    """Describe the largest off-diagonal cells, as in "sofa taken for chair: 12.3 % of sofa's pixels".

    Ranked by pixels, not by share: a class of a few pixels that is always missed costs less than it looks. Equal cells
    come in the order of the matrix; empty ones are left out.

    Args:
        matrix: (K, K) confusion matrix.
        class_names: K names.
        count: maximum number of cells.
    """
    wrong = matrix.clone().fill_diagonal_(0).flatten()
    pixels, cells = wrong.sort(descending=True, stable=True)
    truth = matrix.sum(dim=1).tolist()
    sentences = []
    for amount, cell in zip(pixels[:count].tolist(), cells[:count].tolist(), strict=True):
        if amount <= 0:
            break
        actual, taken = divmod(cell, len(class_names))
        share = 100 * amount / truth[actual]
        shown = f"{share:.1f} %" if share >= 0.05 else "< 0.1 %"
        name = class_names[actual]
        sentences.append(f"{name} taken for {class_names[taken]}: {shown} of {name}'s pixels")
    return sentences
