"""Read a table of image paths and captions: CSV, TSV or parquet, with a header."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO, Any, cast

from simzss.errors import DataError
from simzss.extras import need

from ..records import Dropped
from ..settings import SourceSettings
from .arrow import read_text, read_texts, require_column, require_text
from .files import FileSource
from .grouping import Grouping, GroupingWriter, write_grouping
from .texts import NOT_UTF8, is_broken

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".csv.gz": ",", ".tsv.gz": "\t"}
_ROWS = 1024  # of a parquet file, read at once

# Where in the file, path, captions; None for one that is not UTF-8.
_Row = tuple[str, str, list[str | None]]

_NO_PATH = "row without a path"
_PATH_NOT_UTF8 = "path is not UTF-8"
_TOO_FEW = "row with fewer cells than the header"
_TOO_MANY = "row with more cells than the header"
_BAD_ROW = "row that cannot be read"


def open_table(settings: SourceSettings, scratch: Path) -> FileSource:
    """Open images in the order in which their paths first appear, each with the captions of all its rows.

    Raises:
        DataError: file missing or of another kind, an unknown column, or not one image of it is there.
    """
    assert settings.table is not None
    path = settings.table
    folder = settings.images if settings.images is not None else path.parent
    delimiter = next((value for suffix, value in _DELIMITERS.items() if path.name.lower().endswith(suffix)), None)
    if delimiter is None and path.suffix.lower() != ".parquet":
        raise DataError(f"table={path} is none of {', '.join([*_DELIMITERS, '.parquet'])}")
    if not path.is_file():
        raise DataError(f"table={path} {'is no file' if path.exists() else 'does not exist'}")
    if not folder.is_dir():
        raise DataError(f"images={folder} is no folder")
    database = scratch / "table.sqlite"
    with write_grouping(database) as writer:
        _take(_parquet(path, settings) if delimiter is None else _separated(path, delimiter, settings), writer)
    source = FileSource(
        str(path), folder, Grouping(database), settings.samples_per_shard, listed=False,
        inside=settings.images is not None,
    )  # fmt: skip
    source.require_any("paths")
    return source


def _take(rows: Iterator[_Row | Dropped], writer: GroupingWriter) -> None:
    last = ""
    for row in rows:
        if isinstance(row, Dropped):
            writer.add_dropped(row)
            continue
        where, path, captions = row
        name = _plain(path)
        if name != last:  # the rows of an image mostly follow each other
            writer.add_name(name, name)
        last = name
        for caption in captions:
            if caption is None:
                writer.add_dropped(Dropped("caption", where, NOT_UTF8))
            else:
                writer.add_text(name, caption)


def _plain(path: str) -> str:
    """Return a path without steps that lead nowhere: "./a.jpg" and "a.jpg" are one image."""
    return PurePath(path).as_posix() if "./" in path or "//" in path else path


def _separated(path: Path, delimiter: str, settings: SourceSettings) -> Iterator[_Row | Dropped]:
    """Yield rows of a CSV or TSV file. Quotes are read strictly: a stray one would take following rows into its cell.

    Raises:
        DataError: the file cannot be read, or has no header with both columns.
    """
    try:
        with _open(path) as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            try:
                header = next(reader, [])
            except csv.Error as error:
                raise DataError(f"table={path} has a header that cannot be read: {error}") from error
            require_column(settings.path_column, "path_column", header, f"table={path}")
            require_column(settings.caption_column, "caption_column", header, f"table={path}")
            columns = (header.index(settings.path_column), header.index(settings.caption_column))
            yield from _cells(reader, columns, len(header))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"table={path} cannot be read: {error}") from error


def _cells(reader: Any, columns: tuple[int, int], width: int) -> Iterator[_Row | Dropped]:
    while True:
        first = reader.line_num + 1
        where = f"line {first}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines = f"{where}: " if reader.line_num == first else f"lines {first} to {reader.line_num}: "
            yield Dropped("caption", where, _BAD_ROW, f"{lines}{error}")
            continue
        if not row:
            continue  # an empty line says nothing
        if len(row) <= max(columns):
            yield Dropped("caption", where, _TOO_FEW, f"{len(row)} of {width}")
        elif any(row[width:]):
            # Most likely a comma in a caption without quotes: what is in the cell is half of it.
            yield Dropped("caption", where, _TOO_MANY, f"{len(row)} of {width}")
        elif not row[columns[0]].strip():
            yield Dropped("caption", where, _NO_PATH)
        elif is_broken(row[columns[0]]):
            yield Dropped("caption", where, _PATH_NOT_UTF8)
        else:
            caption = row[columns[1]]
            yield where, row[columns[0]], [None if is_broken(caption) else caption]


def _open(path: Path) -> IO[str]:
    # Bytes that are not UTF-8 become half surrogate pairs, which end one row and not the file.
    if path.suffix.lower() == ".gz":
        return cast("IO[str]", gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=""))
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _parquet(path: Path, settings: SourceSettings) -> Iterator[_Row | Dropped]:
    """Yield rows of a parquet file; a caption may be a list of texts.

    Raises:
        DataError: the file cannot be read, or lacks a column, or has one of another type.
    """
    pyarrow, parquet = need("pyarrow", "prep"), need("pyarrow.parquet", "prep")
    columns = [settings.path_column, settings.caption_column]
    try:
        # Reading ahead would hold as many rows as the file has groups.
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            schema = file.schema_arrow
            require_column(columns[0], "path_column", schema.names, f"table={path}")
            require_column(columns[1], "caption_column", schema.names, f"table={path}")
            require_text(schema.field(columns[0]).type, "path_column", columns[0], f"table={path}")
            require_text(schema.field(columns[1]).type, "caption_column", columns[1], f"table={path}", lists=True)
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                for path_cell, caption_cell in zip(batch.column(columns[0]), batch.column(columns[1]), strict=True):
                    number += 1
                    where = f"row {number}"
                    name = read_text(path_cell)
                    if name is None:
                        yield Dropped("caption", where, _PATH_NOT_UTF8)
                    elif not name.strip():
                        yield Dropped("caption", where, _NO_PATH)
                    else:
                        yield where, name, read_texts(caption_cell)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"table={path} cannot be read: {reason}") from error
