"""Read a folder that `datasets` wrote with `save_to_disk`: Arrow files, in place.

Nothing of the folder is executed or unpickled, and nothing is looked up elsewhere: it is Arrow and JSON on this disk.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from simzss.data.shards import IMAGE_SUFFIXES
from simzss.errors import DataError, nearest
from simzss.extras import need

from ..records import Dropped, RawSample, Task
from ..settings import SourceSettings
from .arrow import read_text, read_texts, require_column, require_text
from .texts import MISSING, NOT_UTF8, OUTSIDE, sort_captions

_NO_IMAGE = "row without an image"
_UNKNOWN_FORMAT = f"image is none of {', '.join(IMAGE_SUFFIXES)}"
_STARTS = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"BM": "bmp"}


@dataclass(frozen=True)
class DatasetSource:
    """Ranges of rows.

    Attributes:
        label: path of the folder, for messages.
        folder: the same, from the root.
        split: of it, None where it has none.
        rows: how many.
        size: rows of a task.
        state: fingerprint of the dataset, size and time of change of its files.
    """

    label: str
    folder: str
    split: str | None
    rows: int
    size: int
    state: str

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def tasks(self) -> Iterator[Task]:
        """Yield the ranges in order."""
        for number, start in enumerate(range(0, self.rows, self.size)):
            stop = min(start + self.size, self.rows)
            payload = {"folder": self.folder, "split": self.split, "start": start, "stop": stop}
            stamp = json.dumps([self.state, start, stop])
            yield Task(number, f"{self.label}, rows {start} to {stop - 1}", payload, stamp)

    def dropped(self) -> Iterator[Dropped]:
        """Yield nothing: every row is in a task."""
        return iter(())


def open_dataset(settings: SourceSettings) -> DatasetSource:
    """Open the rows of a dataset, or of one of its splits.

    Raises:
        DataError: no such folder, no dataset in it, an unknown split or column, or a column of another type.
    """
    assert settings.dataset is not None
    folder = settings.dataset
    opened = _load(folder.absolute(), settings.dataset_split)
    _require_columns(opened, settings, f"dataset={folder}")
    return DatasetSource(
        str(folder), str(folder.absolute()), settings.dataset_split, len(opened), settings.samples_per_shard,
        _state(opened),
    )  # fmt: skip


def read_dataset(payload: dict[str, Any], settings: SourceSettings) -> Iterator[RawSample | Dropped]:
    """Yield the samples of a range of rows, one row at a time; images are passed on as they are stored.

    Raises:
        DataError: the folder cannot be read (any more).
    """
    pyarrow = need("pyarrow", "prep")
    folder = Path(payload["folder"])
    opened = _load(folder, payload["split"])
    _require_columns(opened, settings, f"dataset={folder}")
    # Rows as Arrow are what the file holds: an image is not decoded, whatever its column asks for.
    rows = opened.with_format("arrow", columns=[settings.image_column, settings.caption_column])
    for number in range(payload["start"], payload["stop"]):
        try:
            row = rows[number : number + 1]
            image, captions = row[settings.image_column][0], row[settings.caption_column][0]
        except (OSError, IndexError, pyarrow.ArrowException) as error:
            raise DataError(f"row {number} of dataset={folder} cannot be read: {_line(error)}") from error
        yield from _sample(number, image, captions, folder)


def _sample(number: int, image: Any, captions: Any, folder: Path) -> Iterator[RawSample | Dropped]:
    data, path = _stored(image)
    where = path or f"row {number}"
    if data is None and path:
        # Saving puts the files into the folder's Arrow files; what is not there may only be below the folder.
        try:
            file = (folder / path).resolve()
            data = file.read_bytes() if file.is_relative_to(folder.resolve()) else None
        except (OSError, ValueError):
            yield Dropped("image", path, MISSING)
            return
        if data is None:
            yield Dropped("image", path, OUTSIDE)
            return
    if data is None:
        yield Dropped("image", where, _NO_IMAGE)
        return
    name = path
    if Path(path).suffix.lower().lstrip(".") not in IMAGE_SUFFIXES:
        suffix = _suffix(data)
        if suffix is None:
            yield Dropped("image", where, _UNKNOWN_FORMAT)
            return
        name = f"{path or f'{number:09d}'}.{suffix}"
    texts = read_texts(captions)
    yield from (Dropped("caption", name, NOT_UTF8) for text in texts if text is None)
    kept, dropped = sort_captions(name, (text for text in texts if text is not None))
    yield from dropped
    if kept:
        yield RawSample(name, number, kept, data)


def _stored(image: Any) -> tuple[bytes | None, str]:
    """Return bytes and path of an image value, None and empty where it has none."""
    if not image.is_valid or not hasattr(image, "keys"):
        return image.as_py(), ""
    fields = {key: image[key] for key in ("bytes", "path") if key in image}
    data = fields["bytes"].as_py() if "bytes" in fields else None
    return data, (read_text(fields["path"]) or "") if "path" in fields else ""


def _load(folder: Path, split: str | None) -> Any:
    """Load the dataset of a folder and split, once per process as long as it does not change.

    Raises:
        DataError: no dataset there, or no such split.
    """
    if not folder.is_dir():
        raise DataError(f"dataset={folder} is no folder")
    marks = [folder / name for name in ("dataset_dict.json", "state.json")]
    if split is not None:
        marks.append(folder / split / "state.json")
    return _open(folder, split, tuple(mark.stat().st_mtime_ns if mark.is_file() else 0 for mark in marks))


@lru_cache(maxsize=2)
def _open(folder: Path, split: str | None, _changed: tuple[int, ...]) -> Any:
    datasets = need("datasets", "prep")
    datasets.disable_progress_bars()
    file = f"dataset={folder}"
    try:
        opened = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except Exception as error:
        # Whatever the library trips over in files of strangers: a missing key, a wrong type, a cut Arrow file.
        raise DataError(f"{file} is no dataset that save_to_disk wrote: {_line(error)}") from error
    if not isinstance(opened, datasets.DatasetDict):
        if split is not None:
            raise DataError(f"{file} has no splits: leave out dataset_split={split}")
        return opened
    if split is None:
        raise DataError(f"{file} has splits: give dataset_split=NAME; known: {', '.join(opened)}")
    if split not in opened:
        raise DataError(f"{file} has no split {split!r}; {nearest(split, opened)}")
    return opened[split]


def _require_columns(opened: Any, settings: SourceSettings, file: str) -> None:
    """Refuse a dataset without both columns. Images are an `Image` feature or plain bytes.

    Raises:
        DataError: names the nearest columns, or the type.
    """
    image, caption = settings.image_column, settings.caption_column
    require_column(image, "image_column", opened.column_names, file)
    require_column(caption, "caption_column", opened.column_names, file)
    schema, types = opened.data.schema, need("pyarrow", "prep").types
    kind = schema.field(image).type
    is_image = isinstance(opened.features[image], need("datasets", "prep").Image)
    if not (is_image or types.is_binary(kind) or types.is_large_binary(kind)):
        raise DataError(f"{file}: image_column={image} holds {kind}, not images; paths go into a table=FILE")
    require_text(schema.field(caption).type, "caption_column", caption, file, lists=True)


def _state(opened: Any) -> str:
    found = [(Path(file["filename"]), Path(file["filename"]).stat()) for file in opened.cache_files]
    return json.dumps([opened._fingerprint, [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in found]])


def _suffix(data: bytes) -> str | None:
    """Return the suffix by how the bytes begin, None if they are no image that the shards take."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((suffix for start, suffix in _STARTS.items() if data.startswith(start)), None)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
