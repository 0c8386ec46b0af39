"""The segmenter: a model, class names, an inference protocol; photos in, label maps out."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from simzss.data.transforms import short_side_transform, to_rgb
from simzss.errors import InputError, nearest
from simzss.models.folder import load_model
from simzss.models.simzss import SimZSS
from simzss.precision import best_device, resolve_precision
from simzss.segmentation.background import Background
from simzss.segmentation.classifier import Classifier, ClassNames, build_classifier
from simzss.segmentation.prompts import READOUTS
from simzss.segmentation.sliding import slide

INFERENCE = ("whole", "slide")


@dataclass(frozen=True)
class Protocol:
    """How an image goes through the model, `conf/protocol`.

    Args:
        inference: `whole` image or `slide` a window over it.
        short_side: images are resized so that the short side has so many pixels.
        crop_size: side of a window in pixels (`slide`).
        stride: between windows in pixels (`slide`).
        templates: name of a set of prompt templates.
        temperature: of the softmax over classes, where the background rule needs probabilities.
    """

    inference: str
    short_side: int
    crop_size: int
    stride: int
    templates: str
    temperature: float

    def __post_init__(self) -> None:
        if self.inference not in INFERENCE:
            raise InputError(f"protocol.inference={self.inference} is unknown; {nearest(self.inference, INFERENCE)}")
        for name in ("short_side", "crop_size", "stride"):
            if getattr(self, name) < 1:
                raise InputError(f"protocol.{name}={getattr(self, name)} must be at least 1")
        if self.stride > self.crop_size:  # pixels between the windows would have no score
            raise InputError(f"protocol.stride={self.stride} must be at most protocol.crop_size={self.crop_size}")
        if not self.temperature > 0:  # so that NaN is refused too
            raise InputError(f"protocol.temperature={self.temperature} must be above 0")


WHOLE_336 = Protocol("whole", short_side=336, crop_size=336, stride=224, templates="imagenet80", temperature=0.05)


@dataclass(frozen=True)
class Prediction:
    """Result for one image: `logits` (K, H, W) float32 and `mask` (H, W) int64 at the image's size, on the CPU."""

    logits: Tensor
    mask: Tensor
    class_names: tuple[str, ...]


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
    """

    def __init__(
        self,
        model: SimZSS,
        protocol: Protocol = WHOLE_336,
        readout: str = "concept",
        precision: str = "auto",
        device: torch.device | None = None,
    ) -> None:
        if readout not in READOUTS:
            raise InputError(f"readout={readout} is unknown; {nearest(readout, READOUTS)}")
        self.device = device if device is not None else best_device()
        self.model = model.to(self.device).eval()
        self.protocol = protocol
        self.readout = readout
        self.precision = resolve_precision(precision, self.device)
        model.backbone.use_precision(self.precision)
        self.classifier: Classifier | None = None
        stride = model.backbone.stride
        if protocol.inference == "slide":
            model.backbone.check_size(protocol.crop_size, protocol.crop_size)
        self._resize = short_side_transform(protocol.short_side, stride)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, backbone_weights: str | None = None, readout: str | None = None, **options: Any
    ) -> "Segmenter":
        """Load a model folder (see `simzss.models.folder`); `options` are those of the class."""
        model, settings = load_model(source, backbone_weights)
        return cls(model, readout=readout or settings.get("readout", "concept"), **options)

    def set_classes(self, classes: ClassNames, background: Background | None = None) -> "Segmenter":
        """Say what to look for: one name per class, or several of which the mean is taken.

        Raises:
            InputError: no class, an empty name, a name twice.
        """
        self.classifier = build_classifier(
            self.model,
            classes,
            background=background or Background(),
            template_set=self.protocol.templates,
            readout=self.readout,
            temperature=self.protocol.temperature,
        )
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by index of the mask."""
        return self._classifier().names

    @torch.no_grad()
    def predict(self, image: Image.Image | np.ndarray) -> Prediction:
        """Segment one photo: PIL image or (H, W, 3) uint8 array."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image = to_rgb(image)
        classifier = self._classifier()
        similarity = self.similarity(self._resize(image))
        full = F.interpolate(similarity[None], size=(image.height, image.width), mode="bilinear", align_corners=False)[
            0
        ]
        logits = classifier.logits(full)
        return Prediction(logits.cpu(), logits.argmax(dim=0).cpu(), classifier.names)

    @torch.no_grad()
    def similarity(self, image: Tensor) -> Tensor:
        """Cosines of a resized image (3, H, W) uint8 with classes and background words.

        Returns:
            (S, h, w) float32: the patch grid for `whole`, pixels for `slide`.
        """
        image = image.to(self.device)
        if self.protocol.inference == "slide":
            return slide(image, self.protocol.crop_size, self.protocol.stride, self._window_similarity)
        return self._window_similarity(image[None])[0]

    def _window_similarity(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, S, h, w)."""
        features = self.model.feature_norm(self.model.backbone(images))
        return self._classifier().similarity(features.patches).unflatten(-1, features.grid)

    def _classifier(self) -> Classifier:
        if self.classifier is None:
            raise InputError("no classes yet: call set_classes first")
        return self.classifier

    def describe(self) -> dict[str, Any]:
        """The protocol as recorded with every result."""
        classifier = self._classifier()
        background = asdict(classifier.background)
        facts = asdict(self.protocol) | {"readout": self.readout, "precision": self.precision}
        return facts | {"background": background | {"words": list(classifier.background.words)}}
