"""Image files of any kind as RGB. Without torch: programs that only read images start in half the time."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode, pixel for pixel: what is transparent shows white, and 16-bit grey is scaled to 8 bits."""
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
    """16-bit grey as 8-bit grey; with an alpha channel when one value of it means transparent."""
    pixels = np.asarray(image)
    grey = Image.fromarray((pixels >> 8).astype(np.uint8))
    key = image.info.get("transparency")
    if key is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(pixels == key, 0, 255).astype(np.uint8))))
