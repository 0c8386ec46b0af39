"""Join images and their captions on disk: memory stays the same however many there are.

A captions file lists images and captions in any order, so that the captions of one image may be anywhere in it. They
go into an SQLite file as they come; sorting by image is its work, with a page cache of fixed size.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from simzss.errors import DataError

from ..records import Dropped

_BATCH = 1000  # rows that wait for one statement
_CACHE_KB = 4096  # pages that SQLite holds, also while it builds an index

_TABLES = """
CREATE TABLE names (position INTEGER PRIMARY KEY, key, name BLOB, id TEXT);
CREATE TABLE texts (position INTEGER PRIMARY KEY, key, text BLOB);
CREATE TABLE dropped (kind TEXT, name BLOB, reason TEXT, detail BLOB);
"""
_INDEXES = "CREATE INDEX names_key ON names (key); CREATE INDEX texts_key ON texts (key);"
_EARLIER = "EXISTS (SELECT 1 FROM names AS e WHERE e.key = n.key AND e.position < n.position)"
_GROUPS = f"""
SELECT n.position, n.name, n.id, t.text FROM names AS n LEFT JOIN texts AS t ON t.key = n.key
WHERE NOT {_EARLIER} ORDER BY n.position, t.position
"""
_UNLISTED = """
SELECT t.key, t.text FROM texts AS t WHERE NOT EXISTS (SELECT 1 FROM names AS n WHERE n.key = t.key) ORDER BY t.position
"""


@dataclass(frozen=True)
class Group:
    """An image with all its captions, in the order in which the file has them; nothing is stripped or left out."""

    name: str
    image_id: int | str | None
    captions: list[str]


class GroupingWriter:
    """Writer of images and captions in any order; made by `write_grouping`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._waiting: dict[str, list[tuple]] = {
            "INSERT INTO names (key, name, id) VALUES (?, ?, ?)": [],
            "INSERT INTO texts (key, text) VALUES (?, ?)": [],
            "INSERT INTO dropped VALUES (?, ?, ?, ?)": [],
        }
        self._names, self._texts, self._dropped = self._waiting

    def add_name(self, key: str, name: str, image_id: int | str | None = None) -> None:
        """Add an image of the list; the first of a key counts."""
        self._add(self._names, (_key(key), _blob(name), None if image_id is None else json.dumps(image_id)))

    def add_text(self, key: str, text: str) -> None:
        """Add a caption of the image with this key, listed or not."""
        self._add(self._texts, (_key(key), _blob(text)))

    def add_dropped(self, record: Dropped) -> None:
        """Add what was left out before it could be joined."""
        row = (record.kind, _blob(record.name), record.reason, _blob(record.detail))
        self._add(self._dropped, row)

    def finish(self) -> None:
        """Write what waits, and sort."""
        for statement in self._waiting:
            self._flush(statement)
        self._connection.executescript(_INDEXES)
        self._connection.commit()

    def _add(self, statement: str, row: tuple) -> None:
        rows = self._waiting[statement]
        rows.append(row)
        if len(rows) >= _BATCH:
            self._flush(statement)

    def _flush(self, statement: str) -> None:
        self._connection.executemany(statement, self._waiting[statement])
        self._waiting[statement].clear()


@contextmanager
def write_grouping(path: Path) -> Iterator[GroupingWriter]:
    """Write a new grouping to the file `path`, to be read with `Grouping(path)` afterwards.

    Raises:
        DataError: the file cannot be written, because the disk is full for one.
    """
    try:
        path.unlink(missing_ok=True)  # a run that was ended may have left one
        with closing(sqlite3.connect(path)) as connection:
            _bound(connection)
            # The file is thrown away after a crash: no journal, no waiting for the disk.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.executescript(_TABLES)
            writer = GroupingWriter(connection)
            yield writer
            writer.finish()
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"{path} cannot be written: {error}") from error


@dataclass(frozen=True)
class Grouping:
    """Images with their captions, as `write_grouping` wrote them. Each call reads the file anew."""

    path: Path

    def __len__(self) -> int:
        """Return the number of groups."""
        with self._open() as connection:
            return connection.execute("SELECT count(DISTINCT key) FROM names").fetchone()[0]

    def groups(self) -> Iterator[Group]:
        """Yield every listed image once, in the order of the list."""
        with self._open() as connection:
            for _, found in groupby(connection.execute(_GROUPS), key=itemgetter(0)):
                rows = list(found)
                name, image_id = rows[0][1:3]
                captions = [_text(row[3]) for row in rows if row[3] is not None]
                yield Group(_text(name), None if image_id is None else json.loads(image_id), captions)

    def repeated(self) -> Iterator[str]:
        """Yield the names of images whose key an earlier one has."""
        with self._open() as connection:
            for (blob,) in connection.execute(f"SELECT name FROM names AS n WHERE {_EARLIER} ORDER BY position"):
                yield _text(blob)

    def unlisted(self) -> Iterator[tuple[str, str]]:
        """Yield (key, caption) of each caption whose image is not listed."""
        with self._open() as connection:
            for key, blob in connection.execute(_UNLISTED):
                yield str(key) if isinstance(key, int) else _text(key), _text(blob)

    def dropped(self) -> Iterator[Dropped]:
        """Yield what was added with `add_dropped`, in that order."""
        with self._open() as connection:
            for kind, name, reason, detail in connection.execute("SELECT * FROM dropped ORDER BY rowid"):
                yield Dropped(kind, _text(name), reason, _text(detail))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
                _bound(connection)
                yield connection
        except sqlite3.Error as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error


def _bound(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
    connection.execute("PRAGMA temp_store = FILE")


def _key(key: str) -> int | bytes:
    """Return a number for text that reads back the same: most ids are numbers, which take less room and time."""
    if key.isascii() and key.isdigit() and len(key) < 19 and (key == "0" or key[0] != "0"):
        return int(key)
    return _blob(key)


def _blob(text: str) -> bytes:
    # SQLite's own text has no place for half a surrogate pair.
    return text.encode("utf-8", "surrogatepass")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")
