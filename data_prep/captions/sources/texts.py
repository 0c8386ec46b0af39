"""Clean captions, and name the reasons for which sources leave something out."""

from collections.abc import Iterable

from simzss.data.shards import IMAGE_SUFFIXES

from ..records import Dropped

NO_CAPTION = "no caption"
EMPTY = "empty caption"
HALF_SURROGATE = "caption with half a surrogate pair"
NOT_UTF8 = "caption is not UTF-8"
MISSING = "image file missing"
UNREADABLE = "image file cannot be read"
OUTSIDE = "path leads out of the images folder"
OTHER_SUFFIX = f"suffix is none of {', '.join(IMAGE_SUFFIXES)}"
UNLISTED = "caption of an image that is not listed"
LISTED_TWICE = "image id listed twice"


def sort_captions(name: str, texts: Iterable[str]) -> tuple[tuple[str, ...], list[Dropped]]:
    """Return the usable captions of the image `name`, stripped, and why the others are not.

    An image left without a caption is the last of those left out, so that each image and each caption that is not
    among the samples is counted once.
    """
    kept, dropped = [], []
    for text in texts:
        stripped = text.strip()
        if not stripped:
            dropped.append(Dropped("caption", name, EMPTY))
        elif is_broken(stripped):
            # "\ud83d" of JSON, for which no encoding has bytes.
            dropped.append(Dropped("caption", name, HALF_SURROGATE))
        else:
            kept.append(stripped)
    if not kept:
        dropped.append(Dropped("image", name, NO_CAPTION))
    return tuple(kept), dropped


def is_broken(text: str) -> bool:
    """Tell whether a text holds half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
