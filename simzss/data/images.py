"""The one place where image files are opened: listed formats, bounded sizes.

Without torch: programs that only read images start in half the time.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from simzss.atomic import atomic_write

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")
"""What is opened, by what a file holds and not by its name. Not the formats for which Pillow starts programs (EPS)."""

MAX_PIXELS = 89_478_485
"""Of an image: what Pillow takes for harmless, a quarter of a gigabyte as RGB."""

MAX_ASPECT = 500
"""Of the longer side to the shorter one: panoramas and line scans stay far below."""

MAX_BYTES = 1 << 29
"""Of an image file."""


class ImageTooLargeError(ValueError):
    """An image of more pixels, a longer shape or more bytes than an honest photo has.

    Args:
        message: one line.
        size: width and height, where they are known.
    """

    def __init__(self, message: str, size: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.size = size


@contextmanager
def open_image(file: bytes | Path) -> Iterator[Image.Image]:
    """Open an image file in its own mode: its header is checked, its pixels are decoded when they are asked for.

    Args:
        file: the content, or the path of an image file.

    Raises:
        ValueError: within the block too: not an image, a broken one, or one that is too large (`ImageTooLargeError`).
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of Pillow, about what is checked here or ends as an error
            size = len(file) if isinstance(file, bytes) else file.stat().st_size
            if size > MAX_BYTES:
                raise ImageTooLargeError(f"image too large: {size / 1e6:.0f} MB")
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_formats()) as image:
                _check_size(image.width, image.height)
                yield image
    except ImageTooLargeError:
        raise
    except UnidentifiedImageError as error:
        # Its own text holds the address of the BytesIO, different in every run.
        raise ValueError(f"unreadable image: {'no known format' if size else 'the file is empty'}") from error
    except Image.DecompressionBombError as error:  # Pillow's own bound, for what is beyond ours as well
        raise ImageTooLargeError(f"image too large: {error}") from error
    except OSError as error:
        if error.errno is not None and isinstance(file, Path):
            raise ValueError(f"unreadable image: {error.strerror}") from error
        raise ValueError(f"unreadable image: {error}") from error
    except Exception as error:
        # Pillow raises a dozen types on broken files (SyntaxError, struct.error …).
        raise ValueError(f"unreadable image: {error}") from error


@cache
def _formats() -> tuple[str, ...]:
    """Return those that this Pillow has: AVIF is newer than the oldest that we work with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageTooLargeError(f"image too large: {width} x {height} pixels", (width, height))
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageTooLargeError(f"image too long: {width} x {height} pixels", (width, height))


def decode_image(file: bytes | Path, min_side: int | None = None) -> Image.Image:
    """Decode an image file as RGB, turned as its EXIF orientation says: as its owner saw it and wrote about it.

    Args:
        file: the content, or the path of an image file.
        min_side: minimum side in pixels for JPEG draft decoding; a JPEG of at least twice as many is decoded at a half,
            a quarter or an eighth of its size, in a fraction of the time. None for full size.

    Raises:
        ValueError: see `open_image`.
    """
    with open_image(file) as image:
        return decode_opened(image, min_side)


def decode_opened(image: Image.Image, min_side: int | None = None) -> Image.Image:
    """Decode what `open_image` has opened, as `decode_image` does; to be called within its block."""
    if min_side is not None:
        image.draft(None, (min_side, min_side))  # the mode stays; formats but JPEG do nothing
    image.load()
    # In place, so that it is turned before the rest of a broken EXIF block can fail; without it, it stays as it is.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, pixel for pixel: transparency shows white, and 16-bit grey is scaled to 8 bits."""
    # Pillow alone would clip 16 bits at 255. "I" has 32, of which these formats fill the lower 16.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        # What lies below full transparency is arbitrary, often black.
        colours = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(colours)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, with an alpha channel when one value of it means transparent."""
    pixels = np.asarray(image)
    grey = Image.fromarray((pixels >> 8).astype(np.uint8))
    key = image.info.get("transparency")
    if key is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(pixels == key, 0, 255).astype(np.uint8))))


def save_image(path: Path, image: Image.Image) -> None:
    """Write a picture that appears whole or not at all, in the format that its name says.

    Raises:
        ValueError: a name that says none.
        OSError: it cannot be written.
    """
    form = Image.registered_extensions().get(path.suffix.lower())
    if form is None:
        raise ValueError(f"{path}: unknown format {path.suffix!r}")
    atomic_write(path, lambda stream: image.save(stream, form), durable=False)
