"""Read img2dataset's tars: `key.jpg`, `key.txt`, `key.json`, and beside each tar a parquet file of the same name.

The parquet file has a row of each image that was to be loaded, with `key`, `url`, `caption`, `status` (`success` where
it went into the tar) and `error_message`. The `.json` of a sample is its row.
"""

import json
import os.path
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simzss.data.shards import IMAGE_SUFFIXES, expand_shards, read_members
from simzss.data.tars import EMPTY, LEFT_OUT, UNREADABLE, Skipped
from simzss.errors import DataError

from ..records import Dropped, RawSample, Task
from ..settings import SourceSettings
from .download_table import DownloadTable
from .texts import NO_CAPTION, NOT_UTF8, sort_captions

BREAKS_OFF = "tar breaks off"
_NOT_IN_TAR = "not in the tar, which breaks off"
_NO_IMAGE = "no image in the sample"
_BAD_JSON = "the sample's .json cannot be used"
_REPEATED = "file that is twice in a sample"
_BROKEN_TABLE = "parquet file beside the tar cannot be read"

_BLOCK = 512  # bytes, of a tar
_TEXT_COLUMN = "caption"  # what `.txt` holds


@dataclass(frozen=True)
class TarSource:
    """One task per tar."""

    tars: list[str]

    def __len__(self) -> int:
        return len(self.tars)

    def tasks(self) -> Iterator[Task]:
        """Yield the tars in their order."""
        for number, tar in enumerate(self.tars):
            path = Path(tar)
            # With its name: sizes are padded and times may be copied, so that two tars can be alike in both.
            stamp = json.dumps([path.name, _stat(path), _stat(path.with_suffix(".parquet"))])
            yield Task(number, tar, {"tar": str(path.absolute())}, stamp)

    def dropped(self) -> Iterator[Dropped]:
        """Yield nothing: everything is in a tar or beside it."""
        return iter(())


def open_img2dataset(settings: SourceSettings) -> TarSource:
    """Open the tars of a path, glob, brace pattern or folder.

    Raises:
        DataError: no tar, or tars that this program wrote.
    """
    assert settings.shards is not None
    pattern = settings.shards
    if isinstance(pattern, str) and os.path.isdir(pattern):  # noqa: PTH112 - Path.is_dir raises on text longer than a file name, as patterns may be
        # The folder's own name may have the characters of a pattern.
        tars = sorted(str(path) for path in Path(pattern).glob("*.tar") if path.is_file())
        if not tars:
            raise DataError(f"shards={pattern} holds no .tar")
    else:
        tars = expand_shards(pattern, "shards")
    first = next(read_members(tars[:1], lambda _: None), None)
    if first is not None:
        _refuse_annotated(first, tars[0])
    return TarSource(tars)


def read_img2dataset(payload: dict[str, Any], settings: SourceSettings) -> Iterator[RawSample | Dropped]:
    """Yield the samples of one tar, and what its parquet file says of images that are not in it.

    The caption is the sample's `.txt`, else in its `.json`, else in the parquet file. An empty `.txt` is what
    img2dataset writes where there is none.

    Raises:
        DataError: the tar is missing, was written by this program, or breaks off and `broken_tars` is `fail`.
    """
    path = Path(payload["tar"])
    keep = settings.broken_tars == "keep"
    reason = _missing_end(path)
    if reason and not keep:
        raise _broken(path, reason)
    table = DownloadTable(path.with_suffix(".parquet"), settings.caption_column)
    explained = False
    try:
        for record in table.failures():
            explained = True
            yield record
    except DataError as error:
        if not keep:
            raise
        yield Dropped("image", table.path.name, _BROKEN_TABLE, str(error))
        table = DownloadTable(None, settings.caption_column)

    notes: list[Skipped] = []
    seen: set[str] = set()
    for raw in read_members([str(path)], notes.append):
        _refuse_annotated(raw, str(path))
        seen.add(_last(str(raw["__key__"])))
        yield from _sample(raw, table, settings.caption_column)
    for note in notes:
        if note.reason.startswith(UNREADABLE):
            reason = note.reason.removeprefix(UNREADABLE)
            if not keep:
                raise _broken(path, reason)
        elif note.reason.startswith(LEFT_OUT):
            yield Dropped(_kind(note.key), note.key, *note.reason.split(": ", 1))
        elif note.reason != EMPTY:
            member = note.reason.split(":")[0]
            yield Dropped(_kind(member), member, _REPEATED)
        elif not explained and not reason:
            yield Dropped("image", path.name, EMPTY)
    if reason:
        yield Dropped("image", path.name, BREAKS_OFF, reason)
        yield from (Dropped("image", key, _NOT_IN_TAR) for key in table.keys() if key not in seen)  # noqa: SIM118


def _sample(raw: dict[str, Any], table: DownloadTable, caption_column: str) -> Iterator[RawSample | Dropped]:
    """Yield the sample of one key's files, or what is wrong with it."""
    key = str(raw["__key__"])
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in raw), None)
    if suffix is None:
        yield Dropped("image", key, _NO_IMAGE)
        return
    try:
        meta = _meta(raw)
        caption = _caption(raw, meta, table, key, caption_column)
    except UnicodeDecodeError as error:
        yield Dropped("caption", key, NOT_UTF8, str(error))
        yield Dropped("image", key, NO_CAPTION)
        return
    except (ValueError, RecursionError) as error:
        yield Dropped("image", key, _BAD_JSON, str(error))
        return
    if not caption.strip():
        yield Dropped("image", key, NO_CAPTION)
        return
    captions, dropped = sort_captions(key, [caption])
    yield from dropped
    if captions:
        image_id = meta.get("key", key)
        known = isinstance(image_id, int | str) and not isinstance(image_id, bool)
        yield RawSample(f"{_last(key)}.{suffix}", image_id if known else key, captions, raw[suffix])


def _meta(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the sample's `.json`, empty without one.

    Raises:
        ValueError: no JSON, or no object.
    """
    if "json" not in raw:
        return {}
    try:
        meta = json.loads(raw["json"])
    except UnicodeDecodeError as error:
        raise ValueError(str(error)) from error
    if not isinstance(meta, dict):
        raise ValueError("no object")
    return meta


def _caption(raw: dict[str, Any], meta: dict[str, Any], table: DownloadTable, key: str, column: str) -> str:
    """Return the caption, empty where there is none.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        ValueError: it is no text.
    """
    text = raw["txt"].decode() if column == _TEXT_COLUMN and "txt" in raw else ""
    if text.strip():
        return text
    text = meta.get(column) or ""
    if not isinstance(text, str):
        raise ValueError(f"{column} {text!r} is no text")
    if text.strip():
        return text
    found = table.caption(_last(key))
    if found is None:
        raise UnicodeDecodeError("utf-8", b"", 0, 0, f"in the column {column} of {table.path.name}")
    return found


def _refuse_annotated(raw: dict[str, Any], tar: str) -> None:
    """Refuse a shard of this program.

    Raises:
        DataError: the sample has concepts already.
    """
    if b'"pipeline"' not in raw.get("json", b""):
        return
    try:
        meta = json.loads(raw["json"])
    except (ValueError, RecursionError):
        return
    if isinstance(meta, dict) and {"format_version", "pipeline", "captions"} <= meta.keys():
        raise DataError(f"{tar} was written by this program: its captions are annotated already")


def _missing_end(path: Path) -> str:
    """Return why a plain tar must have been cut off; empty if it ends in zeros, as every whole one does.

    One read instead of all, and it also sees a cut between two files, which looks like the end. A compressed tar is
    left to its decompressor.

    Raises:
        DataError: no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            plain = stream.read(_BLOCK)[257:262] == b"ustar"
            size = path.stat().st_size
            stream.seek(max(0, size - _BLOCK))
            return "no end mark" if plain and any(stream.read(_BLOCK)) else ""
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _broken(path: Path, reason: str) -> DataError:
    return DataError(f"{path} breaks off ({reason}); broken_tars=keep takes what stands before the break")


def _kind(member: str) -> Literal["image", "caption"]:
    return "image" if member.rpartition(".")[2].lower() in IMAGE_SUFFIXES else "caption"


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _stat(path: Path) -> list[int] | None:
    """Return size and time of change of a file; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
