"""COCO captions: one JSON with a list of images and a list of captions, and a folder of images."""

from pathlib import Path
from typing import Any

from simzss.errors import DataError

from ..settings import SourceSettings
from .files import FileSource, require_images
from .grouping import Grouping, GroupingWriter, write_grouping
from .json_lists import read_lists


def open_coco(settings: SourceSettings, scratch: Path) -> FileSource:
    """Open images in the order of the file, each with its captions.

    Raises:
        DataError: folder missing or without images, JSON of another shape, or not one image of it is there.
    """
    assert settings.images is not None and settings.captions is not None
    folder, captions = settings.images, settings.captions
    require_images(folder)
    database = scratch / "coco.sqlite"
    with write_grouping(database) as writer:
        _read(captions, writer)
    source = FileSource(str(captions), folder, Grouping(database), settings.samples_per_shard, listed=True, inside=True)
    source.require_any("images")
    return source


def _read(path: Path, writer: GroupingWriter) -> None:
    """Pass the file through once: images and captions come in either order.

    Raises:
        DataError: no JSON, or of another shape.
    """
    try:
        for key, entry in read_lists(path, ("images", "annotations")):
            if key == "images":
                image_id = _id(entry["id"])
                writer.add_name(_key(image_id), _text(entry["file_name"], "file_name"), image_id)
            else:
                writer.add_text(_key(_id(entry["image_id"])), _text(entry["caption"], "caption"))
    except (KeyError, TypeError) as error:
        raise DataError(f"captions={path} is no COCO captions file: it needs images[].id, images[].file_name, "
                         f"annotations[].image_id and annotations[].caption ({error!r})") from error  # fmt: skip
    except FileNotFoundError as error:
        raise DataError(f"captions={path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"captions={path} is not readable JSON: {error}") from error


def _id(value: Any) -> int | str:
    """Return an id as a number or text.

    Raises:
        TypeError: it is neither, and cannot be looked up.
    """
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"id {value!r} is neither a number nor text")
    return value


def _key(image_id: int | str) -> str:
    """Return the key of an id: 1 and "1" are two."""
    return str(image_id) if isinstance(image_id, int) else repr(image_id)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{key} {value!r} is no text")
    return value
