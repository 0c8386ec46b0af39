"""Read the lists of a large JSON object, one entry at a time.

Python's own `json` reads each entry, so that a text is what it is everywhere else in this program. Libraries that
stream JSON put a question mark for half a surrogate pair, and take memory by the square of the depth.
"""

import codecs
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

_BLOCK = 1 << 16  # bytes read at once
_LONGEST = 1 << 24  # characters of one entry: where a quote is missing, the rest of the file looks like one
_SPACE = re.compile(r"[ \t\n\r]*")


def read_lists(path: Path, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield (key, entry) for each entry of the lists with these keys, in the order of the file; skip everything else.

    Raises:
        OSError: the file cannot be read.
        ValueError, RecursionError: it is no JSON, or too deep.
        TypeError: it is no object.
        KeyError: it has no list of one of the keys.
    """
    found = set()
    with path.open("rb") as stream:
        reader = _Reader(stream)
        if reader.peek() not in ("{", ""):
            raise TypeError("the file holds no object")
        for key in reader.members():
            if reader.peek() == "[":
                found.add(key)
                for entry in reader.entries():
                    if key in keys:
                        yield key, entry
            else:
                reader.value()
        if reader.peek():
            raise reader.error("text after the end")
    for key in keys:
        if key not in found:
            raise KeyError(key)


class _Reader:
    """Reader of JSON from a file of UTF-8, which holds what one entry needs.

    Raises:
        ValueError: from every method, no JSON here.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._text = ""  # what is read and not yet used starts at `_at`
        self._at = 0
        self._passed = 0  # characters before `_text`
        self._ended = False

    def peek(self) -> str:
        """Return the next character that is no space, empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None  # none is a match as well
            self._at = space.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._fill()

    def take(self, wanted: str) -> str:
        """Return the next character, which is one of `wanted`."""
        if not self.peek() or self._text[self._at] not in wanted:
            raise self.error(f"expected {' or '.join(wanted)}")
        self._at += 1
        return self._text[self._at - 1]

    def members(self) -> Iterator[str]:
        """Yield the keys of an object; the caller reads the value of each before the next."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise self.error(f"key {key!r} is no text")
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def entries(self) -> Iterator[Any]:
        """Yield the values of a list."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def value(self) -> Any:
        """Return the next value, whole."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # What is wrong may be that the rest of the value is still in the file.
                if self._ended or len(self._text) - self._at > _LONGEST:
                    self._at = error.pos
                    raise self.error(error.msg) from error
            else:
                if end + 2 < len(self._text) or self._ended:  # else "-1" may be the beginning of "-1e-5"
                    self._at = end
                    return value
            self._fill()

    def error(self, message: str) -> ValueError:
        """Return an error that says what is wrong and where."""
        return ValueError(f"{message}, at character {self._passed + self._at + 1}")

    def _fill(self) -> None:
        """Read more; twice as much as before for an entry that does not end, which is parsed anew each time."""
        self._text = self._text[self._at :]
        self._passed += self._at
        self._at = 0
        block = self._stream.read(max(_BLOCK, len(self._text)))
        self._ended = not block
        self._text += self._decoder.decode(block, final=self._ended)
