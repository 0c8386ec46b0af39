"""Small inputs of `data_prep.captions` in every layout, and what is read from them."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet

from data_prep.captions.records import Dropped, RawSample, Source
from data_prep.captions.settings import SourceSettings
from data_prep.captions.sources import open_source, read_task
from tests.support.files import image_bytes, write_tar


def write_csv(path: Path, rows: Iterable[Sequence[str]], header: Sequence[str] = ("path", "caption")) -> Path:
    """A table as Python's csv module writes it, tabs between the cells of a `.tsv`."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_parquet(path: Path, columns: Mapping[str, Any], row_group: int = 2) -> Path:
    """A parquet file of columns, in row groups of so many rows."""
    parquet.write_table(pyarrow.table(dict(columns)), path, row_group_size=row_group)
    return path


def raw_texts(values: Sequence[bytes | None]) -> pyarrow.Array:
    """Arrow text of these bytes, UTF-8 or not: Arrow does not look."""
    binary = pyarrow.array(values, pyarrow.binary())
    return pyarrow.Array.from_buffers(pyarrow.string(), len(values), binary.buffers(), binary.null_count)


def loaded(key: str, caption: str | None, **more: Any) -> dict[str, Any]:
    """A row of img2dataset for an image that it got."""
    row = {"url": f"http://photos.example/{key}.jpg", "caption": caption, "key": key, "status": "success"}
    sizes = {"width": 12, "height": 8, "original_width": 24, "original_height": 16, "exif": "{}", "sha256": "0"}
    return row | {"error_message": None} | sizes | more


def not_loaded(key: str, error: str, status: str = "failed_to_download") -> dict[str, Any]:
    """A row of img2dataset for an image that it did not get."""
    blank = dict.fromkeys(("width", "height", "original_width", "original_height", "exif", "sha256"))
    return loaded(key, "a cat") | blank | {"status": status, "error_message": error}


def write_img2dataset(tar: Path, rows: Sequence[dict[str, Any]], texts: bool = True, metas: bool = True) -> Path:
    """A tar and the parquet file beside it.

    Args:
        rows: of `loaded` and `not_loaded`.
        texts: with `.txt`, as img2dataset writes it if it was told of a caption column.
        metas: with `.json`.
    """
    members = []
    for seed, row in enumerate(rows):
        if row["status"] == "success":
            members.append((f"{row['key']}.jpg", image_bytes(seed, form="jpeg")))
            if texts:
                members.append((f"{row['key']}.txt", (row["caption"] or "").encode()))
            if metas:
                members.append((f"{row['key']}.json", json.dumps(row, indent=4).encode()))
    write_tar(tar, members)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), tar.with_suffix(".parquet"))
    return tar


def save_dataset(folder: Path, columns: Mapping[str, Sequence[Any]], **features: Any) -> Path:
    """A folder of `save_to_disk` with these columns; images are a column `image`."""
    kinds: dict[str, Any] = {"image": datasets.Image(), "caption": datasets.Value("string")} | features
    wanted = datasets.Features({name: kinds[name] for name in columns})
    datasets.Dataset.from_dict({name: list(values) for name, values in columns.items()}, wanted).save_to_disk(folder)
    return folder


class Reading:
    """All that a source gives, read as the program reads it."""

    def __init__(self, settings: SourceSettings, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.source: Source = open_source(settings, scratch)
        self.tasks = list(self.source.tasks())
        self.items = [item for task in self.tasks for item in read_task(task, settings)]
        self.samples = [item for item in self.items if isinstance(item, RawSample)]
        self.dropped = [item for item in self.items if isinstance(item, Dropped)]
        self.outside = list(self.source.dropped())

    @property
    def captions(self) -> dict[str, list[str]]:
        """Captions by name of the image."""
        assert len({sample.name for sample in self.samples}) == len(self.samples)
        return {sample.name: list(sample.captions) for sample in self.samples}

    @property
    def reasons(self) -> set[tuple[str, str, str]]:
        """Kind, name and reason of what was left out, in tasks or outside of them; nothing twice."""
        found = [(record.kind, record.name, record.reason) for record in [*self.dropped, *self.outside]]
        assert len(set(found)) == len(found), Counter(found).most_common(1)
        return set(found)
