"""The segmenter: a model and an inference protocol; photos and class names in, label maps out."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simzss.data.settings import Background, ProtocolValues
from simzss.data.transforms import ShortSide
from simzss.device import best_device, resolve_precision
from simzss.errors import ConfigError
from simzss.models.checkpoint import load_model
from simzss.models.sam.load import load_sam
from simzss.models.sam.sam import Sam
from simzss.models.settings import Features, ProxySettings, TextPooling
from simzss.models.simzss import SimZSS
from simzss.segmentation.classifier import Classifier, ClassNames, assemble, checked_names, names_of, parse_classes
from simzss.segmentation.inference.encoder import ImageEncoder, guided_by_sam
from simzss.segmentation.inference.prepare import Photo, Preparation, Prepared, read_photo
from simzss.segmentation.prediction import Prediction
from simzss.segmentation.prompts import check_text_pooling, embed_names, templates
from simzss.segmentation.record import describe
from simzss.segmentation.refine.base import Refiner
from simzss.segmentation.refine.build import build_refiner
from simzss.segmentation.settings import (
    AggregateSettings,
    NoRefinement,
    Protocol,
    RefineSettings,
    features_with,
    from_preset,
)

_CPU_BATCH = 4
"""Images at a time without an accelerator: four keep activations within the 32 MB that the memory allocator hands out
without asking the system each time."""

_CHUNK = 8  # batches
_CLASS_LISTS = 16  # whose vectors are kept


class Segmenter:
    """Labels every pixel of a photo with one of the given names. Safe for several threads: it keeps nothing of a call.

        segmenter = Segmenter.from_pretrained("outputs/run/model")
        prediction = segmenter.predict("photo.jpg", ["cat", "dog/puppy", "green grass"])
        prediction.overlay().show()

    Presets of `conf/` may be given by their name, as in `refine="sam"`.

    Args:
        model: trained model, moved to the device.
        protocol: inference protocol.
        text_pooling: how class names become vectors (`sentence`, `tokens`, `both`); None: the model's own.
        precision: `auto`, `bf16-mixed`, `32-true`.
        device: default: the accelerator when there is one.
        refine: what follows the edges of the photo after classifying.
        aggregate: average of features over what belongs together, before classifying.
        sam: a Segment Anything model, or where its weights are, for aggregations, refinements and proxies that need it.
        batch_size: images or windows at a time; None: what suits the machine.
        values: of a benchmark, for settings that are open.

    Raises:
        ConfigError: settings that do not go together, such as a refinement by SAM without one.
    """

    def __init__(
        self,
        model: SimZSS,
        protocol: Protocol | str = Protocol(),
        *,
        text_pooling: TextPooling | None = None,
        precision: str = "auto",
        device: torch.device | str | None = None,
        refine: RefineSettings | Refiner | str | None = None,
        aggregate: AggregateSettings | str | None = None,
        sam: Sam | str | Path | None = None,
        batch_size: int | None = None,
        values: ProtocolValues = ProtocolValues(),
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        self.device = torch.device(device) if device is not None else best_device()
        self.precision = resolve_precision(precision, self.device)
        self.text_pooling: TextPooling = text_pooling or model.text_pooling
        check_text_pooling(self.text_pooling)
        self.batch_size = batch_size or (32 if torch.accelerator.is_available() else _CPU_BATCH)
        self.protocol: Protocol = from_preset("protocol", protocol).resolved(values)
        refine = from_preset("refine", refine) or NoRefinement()
        aggregate = from_preset("aggregate", aggregate) or AggregateSettings()
        _check_aggregate(model, self.protocol, aggregate)
        self.sam = self._load_sam(sam, model, refine, aggregate)
        self.aggregation = aggregate.resolved(values, None if self.sam is None else self.sam.has_attention)
        self.refiner = refine if isinstance(refine, Refiner) else build_refiner(refine, self.sam, values)
        self.model = model.to(self.device).eval()
        model.backbone.use_precision(self.precision)
        if self.protocol.inference != "whole":
            model.backbone.check_size(self.protocol.crop_size, self.protocol.crop_size)
        self.prepare = self._preparation()
        self._encoder = ImageEncoder(model, self.protocol, self.aggregation, self.sam, self.batch_size)
        self._kept_vectors = lru_cache(_CLASS_LISTS)(lambda names, state: self._vectors(names))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        backbone_weights: str | None = None,
        features: Features | None = None,
        proxy: ProxySettings | str | None = None,
        **options: Any,
    ) -> "Segmenter":
        """Load a model folder (see `simzss.models.checkpoint.load_model`); `options` are those of the class.

        A proxy is for `features="proxy"`, which need not be said.
        """
        own: ProxySettings = from_preset("proxy", proxy) or ProxySettings()
        return cls(load_model(source, backbone_weights, features_with(own, features), own), **options)

    def predict(
        self, photo: Photo, classes: ClassNames | Classifier, background: Background | None = None
    ) -> Prediction:
        """Segment one photo.

        Args:
            photo: file, PIL image or array (H, W, 3) of uint8.
            classes: names, of which "cat/kitten" are two of one class; lists of names; a mapping from names to
                synonyms; or what `classifier` returned.
            background: rule for what is none of the classes.

        Raises:
            InputError: no photo, no class, an empty name, a class listed twice.
        """
        return self.predict_batch([photo], classes, background)[0]

    def predict_batch(
        self, photos: Sequence[Photo], classes: ClassNames | Classifier, background: Background | None = None
    ) -> list[Prediction]:
        """Segment several photos of any sizes at once; see `predict`."""
        images = [read_photo(photo) for photo in photos]
        classifier = self._classifier(classes, background, keep=True)
        predictions = [found for (found,) in self.predict_prepared(list(map(self.prepare, images)), [classifier])]
        for prediction, image in zip(predictions, images, strict=True):
            prediction.photo = image
        return predictions

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
                Prediction(encoding, scores, classifier, self.refiner)
                for scores, classifier in zip(encoding.scores, classifiers, strict=True)
            ]
            for encoding in self._encoder.encode(images, classifiers)
        ]

    def classifier(self, classes: ClassNames | Classifier, background: Background | None = None) -> Classifier:
        """Embed class names, to be used in many calls of `predict`; arguments as there.

        Raises:
            ConfigError: no class, an empty name, a class listed twice.
        """
        return self._classifier(classes, background, keep=False)

    def set_classes(self, classes: ClassNames, background: Background | None = None) -> "BoundSegmenter":
        """Return this segmenter with fixed classes. Deprecated: give the classes to `predict`."""
        warnings.warn("set_classes goes with the next version: give the classes to predict", DeprecationWarning, 2)
        return BoundSegmenter(self, self.classifier(classes, background))

    @property
    def chunk_size(self) -> int:
        """Return the number of images worth handing over together, so that those of one shape find each other."""
        alone = self.sam is not None or self.protocol.inference == "stitch"  # what is kept of an image is large
        return self.batch_size if alone else _CHUNK * self.batch_size

    def describe(self, classifier: Classifier) -> dict[str, Any]:
        """Return the protocol as recorded with every result."""
        return describe(self, classifier)

    def _classifier(self, classes: ClassNames | Classifier, background: Background | None, keep: bool) -> Classifier:
        if isinstance(classes, Classifier):
            if background is not None:
                raise ConfigError("background: a classifier has a rule of its own")
            return classes
        background = background or Background()
        groups = checked_names(parse_classes(classes), background)
        names = names_of(groups, background)
        vectors = self._kept_vectors(names, self._text_state()) if keep else self._vectors(names)
        return assemble(groups, background, vectors, self.protocol.temperature, self.protocol.merge)

    def _vectors(self, names: Sequence[str]) -> Tensor:
        return embed_names(self.model, names, templates(self.protocol.templates), self.text_pooling)

    def _text_state(self) -> float:
        """Checksum that any step of training changes: vectors of other weights are not used again."""
        return float(self.model.text_encoder.projection.weight.detach().double().sum())

    def _load_sam(
        self,
        sam: Sam | str | Path | None,
        model: SimZSS,
        refine: RefineSettings | Refiner,
        aggregate: AggregateSettings,
    ) -> Sam | None:
        """Load the Segment Anything model if anything needs it."""
        needed = {
            f"refine={getattr(refine, 'kind', type(refine).__name__)}": refine.needs_sam,
            f"aggregate={aggregate.kind}": aggregate.needs_sam,
            "proxy=sam": guided_by_sam(model),
        }
        if not any(needed.values()):
            return None
        if sam is None:
            name = next(name for name, needs in needed.items() if needs)
            raise ConfigError(f"{name} needs a Segment Anything model: give sam.weights, in Python sam=FILE")
        loaded = sam if isinstance(sam, Sam) else load_sam(str(sam))
        return loaded.to(self.device).use_precision(self.precision)

    def _preparation(self) -> Preparation:
        if self.model.mask_head is not None:  # whole windows, as many along the short side as in training
            head = self.model.mask_head.settings
            resize = ShortSide(head.scale * head.window, head.window)
        else:
            assert self.protocol.short_side is not None
            resize = ShortSide(self.protocol.short_side, self.model.backbone.stride)
        if self.sam is None:
            return Preparation(resize)
        parts = self.aggregation.parts or 1
        whole = (self.aggregation.needs_sam and parts == 1) or guided_by_sam(self.model)
        return Preparation(
            resize, self.sam.resizer, parts, whole or (self.refiner is not None and self.refiner.needs_sam)
        )


@dataclass(frozen=True)
class BoundSegmenter:
    """A segmenter with fixed classes."""

    segmenter: Segmenter
    classifier: Classifier

    def predict(self, photo: Photo) -> Prediction:
        """See `Segmenter.predict`."""
        return self.segmenter.predict(photo, self.classifier)

    def predict_batch(self, photos: Sequence[Photo]) -> list[Prediction]:
        """See `Segmenter.predict_batch`."""
        return self.segmenter.predict_batch(photos, self.classifier)


def _check_aggregate(model: SimZSS, protocol: Protocol, aggregate: AggregateSettings) -> None:
    """Reject options that the protocol or a mask head does not support.

    Raises:
        ConfigError: names the option.
    """
    inference, kind = protocol.inference, aggregate.kind
    if kind != "none" and inference == "slide":
        raise ConfigError(f"aggregate={kind} needs one map of the image, as inference=whole and stitch have, not slide")
    if model.mask_head is not None and (inference != "whole" or kind != "none"):
        option = f"inference={inference}" if inference != "whole" else f"aggregate={kind}"
        raise ConfigError(f"{option} is not for a model that was trained with masks: its head cuts windows of its own "
                          "(inference=whole)")  # fmt: skip
