"""Errors that a user causes, and the words of their messages."""

import difflib
import unicodedata
from collections.abc import Iterable
from itertools import accumulate

_LISTED = 400  # characters of names that an error lists at most


class SimZSSError(Exception):
    """Base of all errors that this package raises on purpose."""


class InputError(SimZSSError):
    """Bad input: the message is one line that names the file, key or value at fault."""


class ConfigError(InputError):
    """A setting that is unknown, missing or out of range."""


class DataError(InputError):
    """A file of images, captions, masks or features that is missing or cannot be used."""


class ModelError(InputError):
    """Weights or a model folder that are missing, broken or do not fit."""


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return a phrase for an error about an unknown name: the nearest known names, or all of a short list."""
    names = sorted(set(known))
    close = difflib.get_close_matches(str(name), names, n=limit, cutoff=0.4)
    if close:
        return f"did you mean {', '.join(close)}?"
    ends = accumulate(len(name) + 2 for name in names)
    listed = [name for name, end in zip(names, ends, strict=True) if end <= _LISTED]
    return f"known: {', '.join(listed)}" + (f" and {len(names) - len(listed)} more" if len(names) > len(listed) else "")


def printable(text: str) -> str:
    """Return text on one line, without control characters: a file's name could steer the terminal with them."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    # Cc and Cf hold escapes and marks that turn the direction of writing, Cs halves of surrogate pairs.
    unsafe = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in unsafe else char for char in line
    )
