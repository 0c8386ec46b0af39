"""Read the parquet file that img2dataset writes beside a tar: a row of each image that was to be loaded."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simzss.errors import DataError
from simzss.extras import need

from ..records import Dropped

_HTTP_ERROR = re.compile(r"HTTP Error (\d{3})")
_ROWS = 1024  # read at once


class DownloadTable:
    """The parquet file beside a tar, read when it is asked for; as if without rows where there is none.

    Raises:
        DataError: from each method, the file cannot be read.
    """

    def __init__(self, path: Path | None, caption_column: str) -> None:
        self.path = path if path is not None else Path()
        self._there = path is not None and path.is_file()
        self._caption_column = caption_column
        self._captions: dict[str, str | None] | None = None

    def failures(self) -> Iterator[Dropped]:
        """Yield images that were not loaded."""
        for row in self._rows(["key", "url", "status", "error_message"]):
            status = row.get("status", "success")
            if status != "success":
                error = row.get("error_message") or ""
                code = _HTTP_ERROR.search(error)
                # The other errors have host names and times in their text: they would be thousands of reasons.
                cause = f"HTTP error {code[1]}" if code else status or "no status"
                name = row.get("url") or row.get("key") or self.path.name
                yield Dropped("image", name, f"not downloaded: {cause}", error)

    def keys(self) -> Iterator[str]:
        """Yield the keys of the images that were loaded."""
        for row in self._rows(["key", "status"]):
            key = row.get("key")
            if key and row.get("status") == "success":
                yield key

    def caption(self, key: str) -> str | None:
        """Return the caption of a key, empty where there is none, None where it is not UTF-8."""
        if self._captions is None:
            # The rows of one tar, ten thousand unless img2dataset was told otherwise.
            rows = self._rows(["key", self._caption_column])
            self._captions = {row["key"]: row[self._caption_column] for row in rows if len(row) == 2 and row["key"]}
        return self._captions.get(key, "")

    def _rows(self, columns: list[str]) -> Iterator[dict[Any, str | None]]:
        """Yield rows of those of the columns that the file has, as text."""
        if not self._there:
            return
        pyarrow, parquet = need("pyarrow", "prep"), need("pyarrow.parquet", "prep")
        try:
            with parquet.ParquetFile(self.path, pre_buffer=False) as file:
                known = [column for column in columns if file.schema_arrow.names.count(column) == 1]
                for batch in file.iter_batches(batch_size=_ROWS, columns=known):
                    for cells in zip(*(batch.column(column) for column in known), strict=True):
                        yield {column: _cell(column, cell) for column, cell in zip(known, cells, strict=True)}
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{self.path} cannot be read: {str(error).splitlines()[0]}") from error


def _cell(column: str, scalar: Any) -> str | None:
    """Return a value as text, empty where there is none, None where it is not UTF-8."""
    try:
        value = scalar.as_py()
    except UnicodeDecodeError:
        return None
    if isinstance(value, int) and column == "key":
        return f"{value:09d}"  # early versions wrote a number, and named the file by nine digits of it
    return "" if value is None else str(value)
