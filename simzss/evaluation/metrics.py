"""The field's segmentation metric: one confusion matrix over the whole data set."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ConfusionMatrix(Metric):
    """Integer confusion matrix of pixels; exact, order-free, summed over processes.

    `matrix[t, p]` counts pixels of class t that were labelled p. mIoU is the mean over classes that occur in truth
    or prediction of the data set, each counted once, not per image (Everingham et al. 2010).

    Args:
        num_classes: K.
        ignore_index: label of pixels that do not count.
        num_images: n, to count per image too; 0 for not.
    """

    matrix: Tensor
    per_image: Tensor
    full_state_update = False

    def __init__(self, num_classes: int, ignore_index: int = 255, num_images: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("matrix", default=zeros, dist_reduce_fx="sum")
        counts = torch.zeros(num_images, num_classes, 3, dtype=torch.int64)
        self.add_state("per_image", default=counts, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, image: int | None = None) -> None:
        """Add pixels: integer labels of any equal shape; predictions in 0..K-1, targets there or `ignore_index`.

        With the number of an image, `per_image[image]` counts each class's hits, predicted and true pixels.

        Raises:
            ValueError: a label outside.
        """
        counted = target != self.ignore_index
        target, prediction = target[counted].long(), prediction[counted].long()
        for name, values in (("target", target), ("prediction", prediction)):
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < self.num_classes:
                raise ValueError(
                    f"{name} label outside 0..{self.num_classes - 1}: {int(values.min())}..{int(values.max())}"
                )
        flat = torch.bincount(target * self.num_classes + prediction, minlength=self.num_classes**2)
        matrix = flat.view(self.num_classes, self.num_classes)
        self.matrix += matrix
        if image is not None:
            self.per_image[image] += torch.stack([matrix.diag(), matrix.sum(dim=0), matrix.sum(dim=1)], dim=1)

    def compute(self) -> tuple[Tensor, Tensor]:
        """The (K, K) matrix and the (n, K, 3) counts of each image."""
        return self.matrix, self.per_image


def scores(matrix: Tensor, class_names: tuple[str, ...]) -> dict[str, Any]:
    """mIoU, pixel accuracy and IoU per class, in per cent, of a (K, K) confusion matrix.

    IoU of a class = true positives / (truth + prediction - true positives). A class without a pixel in truth and
    prediction has no IoU (None) and is left out of the mean.
    """
    counts = matrix.double()
    hit = counts.diag()
    union = counts.sum(dim=0) + counts.sum(dim=1) - hit
    iou = 100 * hit / union  # 0 / 0 = nan marks absent classes
    occurs = union > 0
    return {
        "mIoU": float(iou[occurs].mean()) if occurs.any() else None,
        "aAcc": float(100 * hit.sum() / counts.sum()) if counts.sum() > 0 else None,
        "per_class": {
            name: float(value) if present else None
            for name, value, present in zip(class_names, iou, occurs.tolist(), strict=True)
        },
    }


def seen_scores(per_class: Mapping[str, float | None], seen: Collection[str]) -> dict[str, float | None]:
    """mIoU over classes that a model was trained on with masks, over the others, and the harmonic mean of the two (Xian
    et al. 2019, section 5.1).

    Args:
        per_class: IoU in per cent by class, None for classes that do not occur.
        seen: names of classes that were trained on.

    Returns:
        `seen`, `unseen` and `harmonic` in per cent; None where no such class occurs.
    """  # fmt: skip
    parts: dict[bool, list[float]] = {True: [], False: []}
    for name, value in per_class.items():
        if value is not None:
            parts[name in seen].append(value)
    known, unknown = (sum(part) / len(part) if part else None for part in (parts[True], parts[False]))
    harmonic = None
    if known is not None and unknown is not None:
        harmonic = 2 * known * unknown / (known + unknown) if known + unknown else 0.0
    return {"seen": known, "unseen": unknown, "harmonic": harmonic}
