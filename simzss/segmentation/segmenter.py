"""The segmenter: a model, class names, an inference protocol; photos in, label maps out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from simzss.data.benchmark import Benchmark
from simzss.data.images import to_rgb
from simzss.data.transforms import ShortSide
from simzss.device import best_device, resolve_precision
from simzss.errors import InputError, nearest
from simzss.models.checkpoint import load_model
from simzss.models.sam.sam import Sam, SamEncoding
from simzss.models.simzss import SimZSS
from simzss.segmentation.background import Background
from simzss.segmentation.classifier import Classifier, ClassNames, ClassProbabilities, build_classifier
from simzss.segmentation.inference.aggregate import Correlation
from simzss.segmentation.inference.encoder import Vision, guided_by_sam, shape_of
from simzss.segmentation.inference.prepare import Preparation, Prepared
from simzss.segmentation.inference.scores import ScoreMap
from simzss.segmentation.prediction import MapScores, Prediction, RegionScores, Scores
from simzss.segmentation.prompts import READOUTS
from simzss.segmentation.protocol import WHOLE_336, Protocol
from simzss.segmentation.refine.pamr import pamr
from simzss.segmentation.refine.refinement import PixelRefinement, Refinement, asks_sam, kind_of
from simzss.segmentation.refine.sam import SamRefinement, refine
from simzss.segmentation.refine.vote import RegionVote, vote

_CPU_BATCH = 4
"""Images at a time without an accelerator: four keep activations within the 32 MB that the memory allocator hands out
without asking the system each time."""

_AHEAD = 8  # batches


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
        correlation: what averages features over the places that belong together, before classifying.
        sam: a Segment Anything model, for the correlations, refinements and proxies that ask one; moved to the device.
        values: of a benchmark, for settings that are open: `cos_factor`, `parts` and `threshold`.

    Raises:
        InputError: settings that do not go together, such as a refinement by SAM without one.
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
        correlation: Correlation | None = None,
        sam: Sam | None = None,
        values: Mapping[str, Any] | None = None,
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
        self.batch_size = batch_size or (32 if torch.accelerator.is_available() else _CPU_BATCH)
        self.classifier: Classifier | None = None
        self.refinement = refinement
        self.values = dict(values or {})
        self.correlation, self.sam = self._resolved(correlation or Correlation(), sam)
        self._check_head()
        if self.protocol.inference != "whole":
            model.backbone.check_size(self.protocol.crop_size, self.protocol.crop_size)
        self.vision = Vision(model, self.protocol, self.correlation, self.sam, self.batch_size)
        assert self.correlation.parts is not None
        self.prepare = Preparation(
            self._resize(),
            self.sam.resizer if self.sam is not None else None,
            self.correlation.parts,
            self._sees_whole,
        )

    def _resolved(self, correlation: Correlation, sam: Sam | None) -> tuple[Correlation, Sam | None]:
        """The correlation without open values, and the SAM if anything asks it."""
        asking = {
            f"refine={kind_of(self.refinement)}": asks_sam(self.refinement),
            f"correlate={correlation.kind}": correlation.needs_sam,
            "proxy=sam": guided_by_sam(self.model),
        }
        if sam is None and any(asking.values()):
            raise InputError(f"{next(name for name, asks in asking.items() if asks)} asks a Segment Anything model: "
                             "give sam.weights")  # fmt: skip
        if correlation.kind != "none" and self.protocol.inference == "slide":
            raise InputError(f"correlate={correlation.kind} needs one map of the image, as inference=whole and splice "
                             "have, not slide")  # fmt: skip
        if not any(asking.values()):
            return correlation.resolved(None, self.values.get("cos_factor")), None
        assert sam is not None
        sam.to(self.device).use_precision(self.precision)
        return correlation.resolved(sam, self.values.get("cos_factor"), self.values.get("parts")), sam

    def _check_head(self) -> None:
        """Refuse ways of looking that a head trained with masks does not have: it looks in its own."""
        if self.model.multires is None:
            return
        asked = []
        if self.protocol.inference != "whole":
            asked.append(f"inference={self.protocol.inference}")
        if self.correlation.kind != "none":
            asked.append(f"correlate={self.correlation.kind}")
        if asked:
            raise InputError(f"{asked[0]} is not for a model that was trained with masks: its head cuts windows of its "
                             "own (inference=whole)")  # fmt: skip

    def _resize(self) -> ShortSide:
        if self.model.multires is not None:  # whole windows, as many along the short side as in training
            head = self.model.multires.config
            return ShortSide(head.scale * head.window, head.window)
        assert self.protocol.short_side is not None
        return ShortSide(self.protocol.short_side, self.model.backbone.stride)

    def _refinement_for(self, background: Background) -> Refinement | None:
        """The refinement without open values: a region begins where its class would win over the background."""
        if not isinstance(self.refinement, SamRefinement):
            return self.refinement
        open_value = background.threshold if background.has_threshold else self.values.get("threshold")
        return self.refinement.resolved(open_value)

    @property
    def _sees_whole(self) -> bool:
        """Whether SAM is asked about the whole image."""
        correlates = self.correlation.needs_sam and self.correlation.parts == 1
        return correlates or guided_by_sam(self.model) or asks_sam(self.refinement)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        backbone_weights: str | None = None,
        features: str | None = None,
        proxy: Mapping[str, Any] | None = None,
        readout: str | None = None,
        **options: Any,
    ) -> "Segmenter":
        """Load a model folder (see `simzss.models.checkpoint.load_model`); `options` are those of the class."""
        model, settings = load_model(source, backbone_weights, features, proxy)
        return cls(model, readout=readout or settings.get("readout", "concept"), **options)

    @property
    def ahead(self) -> int:
        """Number of images worth handing over together, so that those of one shape find each other."""
        alone = self.sam is not None or self.protocol.inference == "splice"  # what is kept of an image is large
        return self.batch_size if alone else _AHEAD * self.batch_size

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

    def background_of(self, benchmark: Benchmark, engineered: bool = False) -> Background:
        """The background rule that a benchmark has for this kind of model, beside its plain or engineered names."""
        return Background(**benchmark.background(engineered, with_masks=self.model.multires is not None))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by index of the mask."""
        return self._classifier().names

    @property
    def background_index(self) -> int | None:
        """Index of the background in the mask; None without one."""
        return 0 if self._classifier().background.present else None

    def predict(self, image: Image.Image | np.ndarray) -> Prediction:
        """Segment one photo: PIL image or (H, W, 3) uint8 array."""
        return self.predict_batch([image])[0]

    @torch.no_grad()
    def predict_batch(self, images: Sequence[Image.Image | np.ndarray]) -> list[Prediction]:
        """Segment several photos of any sizes at once."""
        photos = [to_rgb(Image.fromarray(image) if isinstance(image, np.ndarray) else image) for image in images]
        predictions = self.predict_prepared([self.prepare(photo) for photo in photos], [self._classifier()])
        return [prediction for (prediction,) in predictions]

    @torch.no_grad()
    def predict_prepared(self, images: Sequence[Prepared], classifiers: Sequence[Classifier]) -> list[list[Prediction]]:
        """Segment images that `prepare` made, by several classifiers; the models see each window once.

        Args:
            images: of photos of any sizes.
            classifiers: of class names.

        Returns:
            For each image a prediction by each classifier.
        """
        return [
            [
                Prediction(partial(self._refined, scores_at, image, seen.encoding, classifier), classifier.names)
                for scores_at, classifier in zip(seen.scores, classifiers, strict=True)
            ]
            for image, seen in zip(images, self.vision.look(images, classifiers), strict=True)
        ]

    @torch.no_grad()
    def _refined(
        self,
        scores_at: Callable[[tuple[int, int]], ScoreMap],
        image: Prepared,
        encoding: SamEncoding | None,
        rule: Classifier,
    ) -> Scores:
        """Scores, which can be had at any size, at the photo's size; refined at the resized image's size."""
        refinement = self._refinement_for(rule.background)
        if refinement is None:
            return MapScores(scores_at(image.size), rule)
        shape = shape_of(image.pixels)
        probabilities = rule.probabilities(scores_at(shape).full())
        if isinstance(refinement, PixelRefinement):
            colours = image.pixels.to(self.device).float()
            refined = pamr(colours, probabilities, refinement.iterations, refinement.dilations)
            return MapScores(ScoreMap(refined[None], None, shape, shape, image.size), ClassProbabilities())
        assert self.sam is not None and encoding is not None
        if isinstance(refinement, RegionVote):
            return RegionScores(vote(self.sam, encoding, probabilities, refinement, image.size))
        has_background = rule.background.present
        return RegionScores(
            refine(self.sam, encoding, probabilities, refinement, image.size, background=has_background)
        )

    def _classifier(self) -> Classifier:
        if self.classifier is None:
            raise InputError("no classes yet: call set_classes first")
        return self.classifier

    def describe(self, classifier: Classifier | None = None) -> dict[str, Any]:
        """The protocol as recorded with every result."""
        background = (classifier or self._classifier()).background
        backbone = self.model.backbone
        facts = asdict(self.protocol) | {"readout": self.readout, "precision": self.precision}
        facts |= {"features": backbone.features}
        if self.model.multires is not None:
            facts |= {"short_side": self.prepare.resize.size, "multires": self.model.multires.config.plain()}
        if backbone.proxy is not None:
            guide = None if backbone.guide is None else backbone.guide.fingerprint
            facts |= {"proxy": {key: backbone.proxy[key] for key in ("name", "shift", "gain")} | {"weights": guide}}
        facts |= {"correlate": asdict(self.correlation) if self.correlation.kind != "none" else "none"}
        facts |= {"refine": "none"}
        refinement = self._refinement_for(background)
        if refinement is not None:
            facts |= {"refine": {"kind": kind_of(refinement)} | asdict(refinement)}
        if self.sam is not None:
            facts |= {"sam": {"name": self.sam.name, "weights": self.sam.fingerprint}}
        return facts | {"background": asdict(background) | {"words": list(background.words)}}
