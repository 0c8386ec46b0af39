"""The segmentation of one photo, computed when it is asked for."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from simzss.data.images import save_image
from simzss.errors import DataError
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.inference.encoder import ImageEncoding
from simzss.segmentation.inference.prepare import Photo, read_photo
from simzss.segmentation.inference.scores import Rule, ScoreMap, WindowScores
from simzss.segmentation.inference.windows import shape_of
from simzss.segmentation.refine.base import Counts, Refinement, Refiner
from simzss.visualize import index_mask, overlay


@dataclass(frozen=True)
class MapScores:
    """Scores of an image of H x W pixels as small as the model made them, with the rule that turns them into labels."""

    map: ScoreMap
    rule: Rule
    counts: None = None

    @property
    def labels(self) -> Tensor:
        """Compute (H, W) int64."""
        return self.map.labels(self.rule)

    def logits(self) -> Tensor:
        """Compute (K, H, W) float32; the largest one is the label."""
        return self.rule.logits(self.map.full())


class Prediction:
    """Result for one photo of H x W pixels, on the CPU.

    Args:
        encoding: of the photo.
        scores: of the classifier's classes.
        classifier: with K names.
        refiner: None for labels as the model gives them.

    Attributes:
        photo: RGB, for `overlay`; None where the segmenter got prepared photos.
    """

    photo: Image.Image | None = None

    def __init__(
        self, encoding: ImageEncoding, scores: WindowScores, classifier: Classifier, refiner: Refiner | None = None
    ) -> None:
        self._encoding = encoding
        self._scores = scores
        self._classifier = classifier
        self._refiner = refiner

    @torch.no_grad()
    def score(self) -> MapScores | Refinement:
        """Compute the scores; not kept, as refined scores are large and many predictions may be waiting."""
        prepared, classifier = self._encoding.prepared, self._classifier
        if self._refiner is None:
            return MapScores(self._scores.at(prepared.size), classifier)
        probabilities = classifier.probabilities(self._scores.at(shape_of(prepared.pixels)).full())
        return self._refiner(self._encoding, probabilities, classifier.background)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return K names, indexed by the mask."""
        return self._classifier.names

    @property
    def background_index(self) -> int | None:
        """Return the index of the background in the mask; None without one."""
        return 0 if self._classifier.background.present else None

    @property
    def mask(self) -> Tensor:
        """Return (H, W) int64, indices into `class_names`."""
        return self._labelled[0]

    @property
    def regions(self) -> Counts | None:
        """Return the statistics of a refinement's regions; None without."""
        return self._labelled[1]

    @cached_property
    def _labelled(self) -> tuple[Tensor, Counts | None]:
        scores = self.score()
        return scores.labels.cpu(), scores.counts

    @cached_property
    def logits(self) -> Tensor:
        """Return (K, H, W) float32, computed when asked for: for many classes they are large."""
        return self.score().logits().cpu()

    def save(self, path: str | Path) -> None:
        """Write the mask as an image whose pixel values are the indices, such as a PNG, whole or not at all."""
        save_image(Path(path), index_mask(self.mask.numpy(), num_classes=len(self.class_names)))

    def overlay(self, photo: Photo | None = None) -> Image.Image:
        """Draw the classes over the photo, with a legend.

        Args:
            photo: where the segmenter got it prepared.

        Raises:
            DataError: no photo.
        """
        image = self.photo if photo is None else read_photo(photo)
        if image is None:
            raise DataError("overlay needs the photo: this prediction is of a prepared one")
        return overlay(image, self.mask.numpy(), self.class_names, background=self.background_index)
