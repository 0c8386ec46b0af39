"""Results of evaluations. `plain()` is the entry that `results.json` and `threshold.json` have of one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from simzss.data.shards import Skipped
from simzss.evaluation.counts import Counts
from simzss.evaluation.metrics import Scores, SeenScores

PLAIN, ENGINEERED = "plain", "engineered"
"""Lists of class names that a benchmark has."""


@dataclass(frozen=True)
class NamesResult:
    """Segmentation scores with one list of class names.

    Attributes:
        scores: over all images.
        counts: pixels image by image, which are no part of `plain()`.
        protocol: settings of the segmentation.
        regions: numbers of regions by outcome, where a refinement asks about regions.
        trained_with_masks: classes that a mask head was trained on apart from others; None without a head.
    """

    scores: Scores
    counts: Counts
    protocol: dict[str, Any]
    regions: dict[str, Any] | None = None
    trained_with_masks: SeenScores | None = None

    def plain(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values: dict[str, Any] = {"mIoU": self.scores.miou, "aAcc": self.scores.aacc}
        values |= {"per_class": self.scores.per_class, "protocol": self.protocol}
        if self.regions is not None:
            values["regions"] = self.regions
        if self.trained_with_masks is not None:
            values["trained_with_masks"] = asdict(self.trained_with_masks)
        return values


@dataclass(frozen=True)
class SegmentationResult:
    """Scores of a segmentation set.

    Attributes:
        by_names: result with the `plain` class names and, where measured, with the `engineered` ones.
        images: number of images.
        official_images: number of images of the official set, where known.
    """

    by_names: Mapping[str, NamesResult]
    images: int
    official_images: int | None

    @property
    def miou(self) -> float | None:
        """Return mIoU in per cent with the plain names; None where no pixel counts."""
        return self.by_names[PLAIN].scores.miou

    def plain(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = self.by_names[PLAIN].plain() | {"images": self.images, "official_images": self.official_images}
        if ENGINEERED in self.by_names:
            values[ENGINEERED] = self.by_names[ENGINEERED].plain()
        return values


@dataclass(frozen=True)
class RetrievalResult:
    """Recalls of image-text retrieval.

    Attributes:
        image_to_text: R@1, R@5, R@10 in per cent.
        text_to_image: the same in the other direction.
        images: number of images that count.
        captions: number of captions that count.
        skipped: images and captions that could not be used.
        protocol: settings.
    """

    image_to_text: dict[str, float]
    text_to_image: dict[str, float]
    images: int
    captions: int
    skipped: tuple[Skipped, ...]
    protocol: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"kind": "retrieval"} | _fields(self)


@dataclass(frozen=True)
class ClassificationResult:
    """Accuracies of zero-shot classification.

    Attributes:
        top1: share of images whose class is ranked first, in per cent.
        top5: share of images whose class is among the first five, in per cent.
        per_class: top-1 by class name; None for a class of which no image counts.
        images: number of images that count.
        skipped: images that could not be read.
        protocol: settings.
    """

    top1: float
    top5: float
    per_class: dict[str, float | None]
    images: int
    skipped: tuple[Skipped, ...]
    protocol: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"kind": "classification"} | _fields(self)


@dataclass(frozen=True)
class ThresholdResult:
    """Background threshold of the highest mIoU.

    Attributes:
        threshold: probability.
        names: list of class names it was searched with, `plain` or `engineered`.
        miou_chosen: mIoU in per cent on the images on which it was chosen.
        miou_checked: mIoU on the other images.
        miou_configured: mIoU on the other images with the benchmark's own threshold; None without one.
        images_chosen: number of images on which it was chosen.
        images_checked: number of the other images.
        curve: mIoU of each candidate on the chosen images.
        protocol: settings of the segmentation.
    """

    threshold: float
    names: str
    miou_chosen: float
    miou_checked: float
    miou_configured: float | None
    images_chosen: int
    images_checked: int
    curve: dict[float, float]
    protocol: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "threshold": self.threshold,
            "names": self.names,
            "mIoU": {"chosen on": self.miou_chosen, "checked on": self.miou_checked},
            "mIoU_configured": self.miou_configured,
            "images": {"chosen on": self.images_chosen, "checked on": self.images_checked},
            "curve": {f"{threshold:.2f}": score for threshold, score in self.curve.items()},
            "protocol": self.protocol,
        }


def _fields(result: RetrievalResult | ClassificationResult) -> dict[str, Any]:
    """Return the fields of a result, with skipped samples as `skipped.json` of `data_prep.captions` has them."""
    skipped = [{"name": record.key, "reason": record.reason} for record in result.skipped]
    return {name: skipped if name == "skipped" else value for name, value in vars(result).items()}
