"""Settings of segmentation: protocol, aggregation, refinement."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from simzss.data.settings import Background, ProtocolValues
from simzss.errors import ConfigError
from simzss.models.settings import BackboneWeights, Features, ProxySettings, SamSettings, TextPooling
from simzss.settings.base import Settings
from simzss.settings.types import Positive, Precision, Share

Inference = Literal["whole", "slide", "stitch"]


class Protocol(Settings):
    """Inference protocol, one file of `conf/protocol`."""

    name: str = "whole"
    """by which benchmarks know it"""
    inference: Inference = "whole"
    """whole: the image at once; slide: average the scores of windows; stitch: classify one map of window features"""
    short_side: Positive | None = 336
    """pixels that images are resized to; null: as the benchmark says for this protocol, else crop_size"""
    crop_size: Positive = 336
    """side of a window in pixels (slide, stitch)"""
    stride: Positive = 224
    """pixels between windows (slide, stitch)"""
    templates: str = "imagenet80"
    """name of a set of prompt templates"""
    merge: Literal["mean", "max"] = "mean"
    """of several names of a class: mean of their vectors, or maximum of their scores"""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """of the softmax over classes, where a background rule needs probabilities"""

    @field_validator("stride")
    @classmethod
    def _covers(cls, stride: int, info: Any) -> int:
        if stride > info.data.get("crop_size", stride):  # pixels between the windows would have no score
            raise ValueError(f"must be at most protocol.crop_size={info.data['crop_size']}")
        return stride

    def resolved(self, values: ProtocolValues = ProtocolValues()) -> "Protocol":
        """Return this protocol with a short side: its own, else the benchmark's, else `crop_size`."""
        return self.replace(short_side=self.short_side or values.short_side or self.crop_size)


class AggregateSettings(Settings):
    """Aggregation of patch features by a correlation (Trident, Shi et al. 2024), one file of `conf/aggregate`."""

    kind: Literal["none", "attention", "embedding", "sam", "patches"] = "none"
    """similarity by SAM's last global attention, SAM's embedding, the first of these that SAM has, or the patches"""
    cos_factor: Annotated[float, Field(ge=0)] | None = None
    """times the mean similarity, below which cells do not count; null: as the benchmark says, else 1.2"""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """of exp(similarity / temperature), for embedding and patches"""
    parts: Positive | None = None
    """SAM sees the photo in this many parts along its longer side; null: as the benchmark says, else 1"""

    @property
    def needs_sam(self) -> bool:
        """Tell whether a SAM sees the image."""
        return self.kind in ("sam", "attention", "embedding")

    def resolved(
        self, values: ProtocolValues = ProtocolValues(), has_attention: bool | None = None
    ) -> "AggregateSettings":
        """Return these settings without open values: their own ones, else the benchmark's, else the defaults.

        Args:
            values: of a benchmark.
            has_attention: whether the SAM has a global attention over the image's cells; None without a SAM.

        Raises:
            ConfigError: an attention is asked of a SAM that has none.
        """
        kind = self.kind
        if kind == "attention" and has_attention is False:
            raise ConfigError("aggregate.kind=attention: this Segment Anything model has no global attention over the "
                              "image's cells; use embedding")  # fmt: skip
        if kind == "sam":
            kind = "attention" if has_attention else "embedding"
        given = (value for value in (self.cos_factor, values.cos_factor) if value is not None)
        parts = self.parts or values.parts or 1
        return self.replace(kind=kind, cos_factor=next(given, 1.2), parts=parts if self.needs_sam else 1)


class NoRefinement(Settings):
    """Scores as the model gives them."""

    needs_sam: ClassVar[bool] = False

    kind: Literal["none"] = "none"
    """no refinement"""


class PamrSettings(Settings):
    """Pixel-adaptive mask refinement (Araslanov & Roth 2020), set as in NACLIP (Hajimiri et al. 2025)."""

    needs_sam: ClassVar[bool] = False

    kind: Literal["pamr"] = "pamr"
    """pixel-adaptive mask refinement"""
    iterations: Positive = 10
    """how often a pixel takes the mean of its neighbours"""
    dilations: Annotated[tuple[Positive, ...], Field(min_length=1)] = (8, 16)
    """distances in pixels of the neighbours, eight at each"""


class SamRefinementSettings(Settings):
    """Class regions redrawn by SAM: a box, a point and a faint mask for each (Trident, Shi et al. 2024)."""

    needs_sam: ClassVar[bool] = True

    kind: Literal["sam"] = "sam"
    """prompts for each class region"""
    threshold: Annotated[float, Field(ge=0, lt=1)] | None = None
    """class probability above which a region begins; null: the background's, else the benchmark's or 0.5"""
    min_area: Annotated[float, Field(ge=0)] = 225
    """pixels of a region, on a short side of 448"""
    min_iou: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """predicted IoU above which a mask is accepted"""
    mask_scale: Annotated[float, Field(gt=0)] | None = 0.005
    """of probabilities in the mask prompt; null: no mask prompt"""
    background: Literal["compete", "yield", "rest"] = "compete"
    """what becomes of a background class: it competes with masks, keeps its coarse pixels, or is what is left"""

    def resolved(
        self, background: Background = Background(), values: ProtocolValues = ProtocolValues()
    ) -> "SamRefinementSettings":
        """Return these settings with a threshold: their own, else the background's, else the benchmark's, else 0.5."""
        open_value = background.threshold if background.has_threshold else values.threshold
        given = (value for value in (self.threshold, open_value) if value is not None)
        return self.replace(threshold=next(given, 0.5))


class VoteSettings(Settings):
    """SAM cuts the photo into regions, and each takes one class."""

    needs_sam: ClassVar[bool] = True

    kind: Literal["vote"] = "vote"
    """regions of a grid of points"""
    points: Positive = 16
    """of the grid, along the longer side"""
    min_iou: Share = 0.88
    """predicted IoU of a region"""
    min_stability: Share = 0.9
    """pixels of logits above 1 over those above -1"""
    max_overlap: Share = 0.7
    """IoU of two regions' boxes above which one is left out"""
    vote: Literal["probability", "label"] = "probability"
    """mean probabilities or most frequent labels decide"""


RefineSettings = Annotated[
    NoRefinement | PamrSettings | SamRefinementSettings | VoteSettings, Field(discriminator="kind")
]
"""How class probabilities follow the edges of the photo, one file of `conf/refine`."""


class TrainedBackbone(BackboneWeights):
    """Frozen backbone of a trained model."""

    features: Features | None = None
    """patch features; null: proxy with proxy=NAME, else as the model was trained"""


class SegmentationSettings(Settings):
    """Settings that all verbs that segment share: a trained model and its inference."""

    model: str
    """model folder, or hub repository owner/name"""
    backbone: TrainedBackbone = TrainedBackbone()
    """the frozen backbone of the model"""
    proxy: ProxySettings = ProxySettings()
    """proxy of the backbone's last block"""
    protocol: Protocol = Protocol()
    """how an image goes through the model"""
    inference: Inference | None = None
    """in place of protocol.inference; null: as the protocol says"""
    aggregate: AggregateSettings = AggregateSettings()
    """average of features over what belongs together"""
    refine: RefineSettings = NoRefinement()
    """what follows the edges of the photo after classifying"""
    sam: SamSettings = SamSettings()
    """Segment Anything model"""
    text_pooling: TextPooling | None = None
    """how a class name becomes a vector: sentence, tokens of the name, both; null: the model's own"""
    precision: Precision = "auto"
    """auto: bf16-mixed where it is native"""
    batch_size: Positive | None = None
    """photos or windows at a time; null: what suits the machine"""

    @property
    def needs_sam(self) -> bool:
        """Tell whether anything asks the Segment Anything model."""
        return self.refine.needs_sam or self.aggregate.needs_sam or self.proxy.name == "sam"


def features_with(proxy: ProxySettings, features: Features | None) -> Features | None:
    """Return the features of a backbone beside a proxy: as asked, else `proxy` where there is one."""
    return features or (None if proxy.name is None else "proxy")


class _Presets(Settings):
    """One file of each group."""

    protocol: Protocol = Protocol()
    proxy: ProxySettings = ProxySettings()
    aggregate: AggregateSettings = AggregateSettings()
    refine: RefineSettings = NoRefinement()


def from_preset(group: str, value: Any) -> Any:
    """Return the settings of a file of `conf/GROUP` where a value is its name, else the value itself.

    Raises:
        ConfigError: no such file, or values in it that do not fit.
    """
    if not isinstance(value, str):
        return value
    from simzss.settings.compose import load_choice

    return getattr(_Presets.of({group: load_choice(group, value)}), group)
