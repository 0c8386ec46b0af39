"""Image files of any kind as RGB. Without torch: programs that only read images start in half the time."""

import io
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def decode_image(data: bytes, min_side: int | None = None) -> Image.Image:
    """Decode an image file as RGB, turned as its EXIF orientation says: as its owner saw it and wrote about it.

    Args:
        data: the file.
        min_side: minimum side in pixels for JPEG draft decoding; a JPEG of at least twice as many is decoded at a half,
            a quarter or an eighth of its size, in a fraction of the time. None for full size.

    Raises:
        ValueError: not an image, a broken one, or one of more pixels than Pillow takes for harmless (89 million).
    """
    try:
        image = Image.open(io.BytesIO(data))
        # Pillow only warns up to twice its limit.
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        if min_side is not None:
            image.draft(None, (min_side, min_side))  # the mode stays; formats but JPEG do nothing
        image.load()
        # In place, so that it is turned before the rest of a broken EXIF block can fail; without it, it stays as it is.
        with suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)
    except UnidentifiedImageError as error:
        # Its own text holds the address of the BytesIO, different in every run.
        raise ValueError(f"unreadable image: {'no known format' if data else 'the file is empty'}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"image too large: {error}") from error
    except Exception as error:
        # Pillow raises a dozen types on broken files (OSError, SyntaxError, struct.error …).
        raise ValueError(f"unreadable image: {error}") from error


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
