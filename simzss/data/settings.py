"""Settings of benchmarks: where photos and truth are, and what labels mean."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator

from simzss.settings.base import Settings
from simzss.settings.types import Positive, Share, Strings


def _not_empty(value: Any) -> Any:
    if not value:
        raise ValueError("is empty: give names such as [cat/kitten,dog]")
    return value


ClassNames = Annotated[str | list[str], AfterValidator(_not_empty)]
"""A word list, or class names, several of one class joined by /."""


class _BackgroundRule(Settings):
    """Common part of the background rules."""

    kind: Literal["none", "threshold", "words", "both"] = "none"
    """none; pixels whose best class probability is below a threshold; what words of its own win; both"""

    @property
    def has_threshold(self) -> bool:
        """Tell whether the threshold counts."""
        return self.kind in ("threshold", "both")

    @property
    def has_words(self) -> bool:
        """Tell whether the words count."""
        return self.kind in ("words", "both")

    @property
    def present(self) -> bool:
        """Tell whether there is a background class."""
        return self.kind != "none"

    @field_validator("threshold", "with_masks", check_fields=False)
    @classmethod
    def _inside(cls, value: float | None, info: Any) -> float | None:
        if value is not None and info.data.get("kind") in ("threshold", "both") and not 0 < value < 1:
            raise ValueError("must be between 0 and 1")
        return value

    @field_validator("words", check_fields=False)
    @classmethod
    def _some(cls, words: Any, info: Any) -> Any:
        if info.data.get("kind") in ("words", "both") and not words:
            raise ValueError("is empty: give words such as [sky,wall]")
        return words


class Background(_BackgroundRule):
    """Rule for a background class, which becomes class 0."""

    threshold: Share = 0.5
    """of the best class probability, for threshold and both"""
    words: Annotated[Strings, Field(validate_default=True)] = []
    """what backgrounds consist of, such as sky or wall, for words and both"""


class BenchmarkBackground(_BackgroundRule):
    """Background rule of a benchmark: see `Background`."""

    threshold: Share = 0.0
    """of the best class probability, for models that were trained with captions"""
    with_masks: Share | None = None
    """the same for models that were trained with masks; null: the same value"""
    words: Annotated[str | list[str], Field(validate_default=True)] = []
    """a list, or a word list below the configuration folder"""


class ProtocolValues(Settings):
    """Values of a protocol for a benchmark, where its settings leave them open."""

    short_side: Positive | None = None
    """protocol.short_side"""
    cos_factor: float | None = None
    """aggregate.cos_factor"""
    parts: Positive | None = None
    """aggregate.parts"""
    threshold: float | None = None
    """refine.threshold"""


class BenchmarkSettings(Settings):
    """A segmentation set in its official layout, one file of `conf/benchmark`."""

    task: Literal["segmentation"] = "segmentation"
    """labels of every pixel"""
    name: str
    """key of the results"""
    root: str
    """folder of the official download"""
    inside: Strings = []
    """folders to look for below `root` when it is a parent of the set"""
    images: str = "images"
    """folder of photos, below the root"""
    masks: str = "masks"
    """folder of index masks, below the root"""
    image_suffix: str = ".jpg"
    """end of a photo's file name"""
    mask_suffix: str = ".png"
    """end of its mask's file name"""
    split: str | None = None
    """text file with one name a line, below the root or anywhere; null: every mask"""
    num_classes: Positive | None = None
    """number of classes without the background, checked; null: as many as are listed"""
    classes: ClassNames = "./classes.txt"
    """[cat/kitten,dog], or a word list: `./FILE` below the root, else below the configuration folder or a path"""
    engineered: ClassNames | None = None
    """several names for each of the same classes; null: none"""
    label_offset: int = 0
    """added to mask values to get class indices"""
    ignore_labels: list[int] = [255]
    """mask values that do not count"""
    background: BenchmarkBackground = BenchmarkBackground()
    """rule beside the plain names"""
    engineered_background: BenchmarkBackground = BenchmarkBackground()
    """rule beside the engineered names"""
    protocols: dict[str, ProtocolValues] = {}
    """values by the name of a protocol"""
    official_images: Positive | None = None
    """number of images of the official set"""
    limit: Positive | None = None
    """first images, null: all"""

    def values_of(self, protocol: str) -> ProtocolValues:
        """Return what a protocol takes for this set."""
        return self.protocols.get(protocol, ProtocolValues())


class RetrievalSettings(Settings):
    """Image-text retrieval on a COCO captions file."""

    task: Literal["retrieval"] = "retrieval"
    """which captions belong to an image, and the reverse"""
    name: str = "retrieval"
    """key of the results"""
    root: str
    """folder of the images"""
    captions: str
    """COCO captions JSON"""
    limit: Positive | None = None
    """first images, null: all"""


class ClassificationSettings(Settings):
    """Zero-shot classification on a folder of class folders."""

    task: Literal["classification"] = "classification"
    """one class for every image"""
    name: str = "classification"
    """key of the results"""
    root: str
    """folder of the class folders"""
    classes: str | None = None
    """word list, an entry for each folder in their order; null: the folders' names"""
    templates: str = "imagenet80"
    """name of a set of prompt templates"""
    limit: Positive | None = None
    """images, taken from the classes in turn; null: all"""


class BenchmarksSettings(Settings):
    """Several segmentation sets below one folder, those that are at hand."""

    task: Literal["all"] = "all"
    """several segmentation sets"""
    name: str = "all"
    """of the collection"""
    root: str
    """folder that holds the sets' own folders"""
    sets: Strings
    """names of `conf/benchmark`"""
    limit: Positive | None = None
    """first images of each, null: all"""


def _task(value: Any) -> str:
    return str(value.get("task", "segmentation") if isinstance(value, dict) else getattr(value, "task", ""))


AnyBenchmark = Annotated[
    Annotated[BenchmarkSettings, Tag("segmentation")]
    | Annotated[RetrievalSettings, Tag("retrieval")]
    | Annotated[ClassificationSettings, Tag("classification")]
    | Annotated[BenchmarksSettings, Tag("all")],
    Discriminator(_task),
]
