"""The segmenter: a model, class names, an inference protocol; photos in, label maps out."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simzss.data.images import to_rgb
from simzss.data.transforms import ShortSide
from simzss.errors import InputError, nearest
from simzss.models.folder import load_model
from simzss.models.simzss import SimZSS
from simzss.precision import best_device, resolve_precision
from simzss.segmentation.background import Background
from simzss.segmentation.classifier import Classifier, ClassNames, ClassProbabilities, build_classifier
from simzss.segmentation.prompts import READOUTS
from simzss.segmentation.protocol import WHOLE_336, Protocol
from simzss.segmentation.refine.pamr import pamr
from simzss.segmentation.refine.refinement import Refinement
from simzss.segmentation.scores import Rule, ScoreMap
from simzss.segmentation.sliding import cut

_CPU_BATCH = 4
"""Images at a time without an accelerator: four keep activations within the 32 MB that the memory allocator hands out
without asking the system each time."""

_AHEAD = 8  # batches


class Prediction:
    """Result for one image of H x W pixels, on the CPU, made when it is asked for.

    Args:
        score: scores of the image and the rule that makes labels of them. Called for, and not kept: refined scores
            are large, and many predictions may be waiting.
        class_names: K names, indexed by the mask.
    """

    def __init__(self, score: Callable[[], tuple[ScoreMap, Rule]], class_names: tuple[str, ...]) -> None:
        self.score = score
        self.class_names = class_names

    @cached_property
    def mask(self) -> Tensor:
        """(H, W) int64, indices into `class_names`."""
        scores, rule = self.score()
        return scores.labels(rule).cpu()

    @cached_property
    def logits(self) -> Tensor:
        """(K, H, W) float32, made when asked for: for many classes they are large."""
        scores, rule = self.score()
        return rule.logits(scores.full()).cpu()


class Segmenter:
    """Labels every pixel of a photo with one of the given names.

        segmenter = Segmenter.from_pretrained("outputs/run/model")
        segmenter.set_classes(["cat", "dog", "green grass"])
        mask = segmenter.predict(Image.open("photo.jpg")).mask

    Args:
        model: trained model.
        protocol: inference protocol.
        readout: how class names become vectors (`sentence`, `concept`, `both`).
        precision: `auto`, `bf16-mixed`, `32-true`.
        device: where to run; the model is moved there. Default: the accelerator when there is one.
        refinement: what follows the edges of the photo after classifying.
        batch_size: images or windows at a time, None for what suits the machine.
    """

    def __init__(
        self,
        model: SimZSS,
        protocol: Protocol = WHOLE_336,
        readout: str = "concept",
        precision: str = "auto",
        device: torch.device | None = None,
        refinement: Refinement | None = None,
        batch_size: int | None = None,
    ) -> None:
        if readout not in READOUTS:
            raise InputError(f"readout={readout} is unknown; {nearest(readout, READOUTS)}")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        self.device = device if device is not None else best_device()
        self.model = model.to(self.device).eval()
        self.protocol = protocol.resolved()
        self.readout = readout
        self.precision = resolve_precision(precision, self.device)
        model.backbone.use_precision(self.precision)
        self.refinement = refinement or Refinement()
        self.batch_size = batch_size or (32 if torch.accelerator.is_available() else _CPU_BATCH)
        self.classifier: Classifier | None = None
        if self.protocol.inference == "slide":
            model.backbone.check_size(self.protocol.crop_size, self.protocol.crop_size)
        assert self.protocol.short_side is not None
        self.resize = ShortSide(self.protocol.short_side, model.backbone.stride)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, backbone_weights: str | None = None, readout: str | None = None, **options: Any
    ) -> "Segmenter":
        """Load a model folder (see `simzss.models.folder`); `options` are those of the class."""
        model, settings = load_model(source, backbone_weights)
        return cls(model, readout=readout or settings.get("readout", "concept"), **options)

    @property
    def ahead(self) -> int:
        """Number of images worth handing over together, so that those of one shape find each other."""
        return _AHEAD * self.batch_size

    def set_classes(self, classes: ClassNames, background: Background | None = None) -> "Segmenter":
        """Say what to look for: one name per class, or several of which the mean is taken.

        Raises:
            InputError: no class, an empty name, a name twice.
        """
        self.classifier = self.classifier_of(classes, background)
        return self

    def classifier_of(self, classes: ClassNames, background: Background | None = None) -> Classifier:
        """What `set_classes` makes of names, without setting it."""
        return build_classifier(
            self.model,
            classes,
            background=background or Background(),
            template_set=self.protocol.templates,
            readout=self.readout,
            temperature=self.protocol.temperature,
            merge=self.protocol.merge,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by index of the mask."""
        return self._classifier().names

    def predict(self, image: Image.Image | np.ndarray) -> Prediction:
        """Segment one photo: PIL image or (H, W, 3) uint8 array."""
        return self.predict_batch([image])[0]

    @torch.no_grad()
    def predict_batch(self, images: Sequence[Image.Image | np.ndarray]) -> list[Prediction]:
        """Segment several photos of any sizes at once."""
        photos = [to_rgb(Image.fromarray(image) if isinstance(image, np.ndarray) else image) for image in images]
        sizes = [(photo.height, photo.width) for photo in photos]
        predictions = self.predict_resized([self.resize(photo) for photo in photos], sizes, [self._classifier()])
        return [prediction for (prediction,) in predictions]

    @torch.no_grad()
    def predict_resized(
        self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], classifiers: Sequence[Classifier]
    ) -> list[list[Prediction]]:
        """Segment images that `resize` made, by several classifiers; the backbone sees each window once.

        Args:
            images: (3, h, w) uint8 each, of any sizes that suit the backbone.
            sizes: height and width of each photo, those of the masks.
            classifiers: of class names.

        Returns:
            For each image a prediction by each classifier.
        """
        slide = self.protocol.inference == "slide"
        cuts = [
            cut(image, self.protocol.crop_size, self.protocol.stride) if slide else ([(0, 0)], [image])
            for image in images
        ]
        similarities = self._similarities([window for _, windows in cuts for window in windows], classifiers)
        predictions = []
        for (places, windows), image, size in zip(cuts, images, sizes, strict=True):
            own = [next(similarities) for _ in windows]
            shapes = (places if slide else None, _shape(windows[0]), _shape(image))
            predictions.append(
                [
                    Prediction(
                        partial(
                            self._refined, partial(ScoreMap, torch.stack(scores), *shapes), image, size, classifier
                        ),
                        classifier.names,
                    )
                    for scores, classifier in zip(zip(*own, strict=True), classifiers, strict=True)
                ]
            )
        return predictions

    @torch.no_grad()
    def _refined(
        self, scores_at: Callable[[tuple[int, int]], ScoreMap], image: Tensor, size: tuple[int, int], rule: Classifier
    ) -> tuple[ScoreMap, Rule]:
        """Scores, which can be had at any size, at the photo's size; refined at the resized image's size."""
        if self.refinement.kind == "none":
            return scores_at(size), rule
        probabilities = rule.logits(scores_at(_shape(image)).full()).softmax(dim=0)
        colours = image.to(self.device).float()
        refined = pamr(colours, probabilities, self.refinement.iterations, self.refinement.dilations)
        return ScoreMap(refined[None], None, _shape(image), _shape(image), size), ClassProbabilities()

    def _similarities(self, windows: Sequence[Tensor], classifiers: Sequence[Classifier]) -> Iterator[list[Tensor]]:
        """For each window (3, h, w) the (S, h', w') cosines of each classifier; windows of one shape go together."""
        by_shape: defaultdict[torch.Size, list[int]] = defaultdict(list)
        for index, window in enumerate(windows):
            by_shape[window.shape].append(index)
        found: dict[int, list[Tensor]] = {}
        for indices in by_shape.values():
            for start in range(0, len(indices), self.batch_size):
                chunk = indices[start : start + self.batch_size]
                features = self.model.encode_image(torch.stack([windows[index] for index in chunk]).to(self.device))
                scores = [c.similarity(features.patches).unflatten(-1, features.grid) for c in classifiers]
                found |= {index: [part[row] for part in scores] for row, index in enumerate(chunk)}
        return (found[index] for index in range(len(windows)))

    def _classifier(self) -> Classifier:
        if self.classifier is None:
            raise InputError("no classes yet: call set_classes first")
        return self.classifier

    def describe(self, classifier: Classifier | None = None) -> dict[str, Any]:
        """The protocol as recorded with every result."""
        background = (classifier or self._classifier()).background
        facts = asdict(self.protocol) | {"readout": self.readout, "precision": self.precision}
        facts |= {"refine": asdict(self.refinement) if self.refinement.kind != "none" else "none"}
        return facts | {"background": asdict(background) | {"words": list(background.words)}}


def _shape(image: Tensor) -> tuple[int, int]:
    """Height and width."""
    return image.shape[-2], image.shape[-1]
