"""What a source is told: which layout, and how it is read."""

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from simzss.errors import InputError

Layout = Literal["coco", "img2dataset", "table", "dataset"]


@dataclass(frozen=True)
class SourceSettings:
    """One layout of image-caption pairs and how it is cut into tasks.

    Attributes:
        images: folder that the image paths of `captions` or `table` start from; a table's own folder without it.
        captions: COCO captions JSON.
        shards: img2dataset tars: a path, a glob, a brace pattern, a folder of them, or a list of paths and patterns.
        table: CSV, TSV or parquet file with a header.
        dataset: folder that `datasets` wrote with `save_to_disk`.
        dataset_split: which of its splits, where it has some.
        path_column: of the table.
        caption_column: of the table, of the dataset, or of what img2dataset saved beside an image; any other name
            than `caption` also means that the tars' `.txt`, which hold that one, are not read.
        image_column: of the dataset.
        samples_per_task: images of a task; a tar is always one task.
        broken_tars: `fail` ends the task, `keep` takes what stands before the break.

    Raises:
        InputError: no layout, more than one, or a value out of range.
    """

    images: str | None = None
    captions: str | None = None
    shards: str | list[str] | None = None
    table: str | None = None
    dataset: str | None = None
    dataset_split: str | None = None
    path_column: str = "path"
    caption_column: str = "caption"
    image_column: str = "image"
    samples_per_task: int = 1000
    broken_tars: Literal["fail", "keep"] = "fail"

    def __post_init__(self) -> None:
        given = [key for key in ("captions", "shards", "table", "dataset") if getattr(self, key) is not None]
        folder_is_right = {"captions": self.images is not None, "table": True}
        if len(given) != 1 or not folder_is_right.get(given[0], self.images is None):
            raise InputError("give either images=DIR captions=FILE, or shards=PATTERN, "
                             "or table=FILE with or without images=DIR, or dataset=DIR")  # fmt: skip
        if self.dataset_split is not None and self.dataset is None:
            raise InputError(f"dataset_split={self.dataset_split} needs dataset=DIR")
        if self.samples_per_task < 1:
            raise InputError(f"samples_per_task={self.samples_per_task} must be at least 1")
        if self.broken_tars not in ("fail", "keep"):
            raise InputError(f"broken_tars={self.broken_tars} is neither fail nor keep")

    @property
    def layout(self) -> Layout:
        """Which of the layouts was given."""
        if self.captions is not None:
            return "coco"
        if self.shards is not None:
            return "img2dataset"
        return "table" if self.table is not None else "dataset"


def need(module: str) -> Any:
    """A library of the `prep` extra, imported when it is first used: not every layout needs every one.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{module} cannot be imported ({error}): pip install 'simzss[prep]'") from error
