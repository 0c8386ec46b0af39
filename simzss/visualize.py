"""Pictures of segmentations: class colours, overlays with a legend, index masks and comparisons.

Needs NumPy and Pillow only, so that looking at results never loads a deep-learning framework.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

__all__ = ["index_mask", "overlay", "palette", "side_by_side"]

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_Colour = tuple[int, int, int]

_MIN_WIDTH = 320  # px: below this a legend next to the picture cannot be read
_THICK_CONTOUR_FROM = 1000  # px of the shorter side: there a single-pixel line gets lost
_CONTOUR = np.array([255.0, 255.0, 255.0])
_CONTOUR_ALPHA = 0.85
_PAPER: _Colour = (255, 255, 255)
_INK: _Colour = (32, 34, 38)
_MUTED: _Colour = (104, 108, 116)
_HAIRLINE: _Colour = (214, 216, 220)
_ELLIPSIS = "..."


# --------------------------------------------------------------------------------------------------- colours


def palette(num_classes: int) -> np.ndarray:
    """Return one colour per class: visually distinct, deterministic, and the same for class i whatever the count.

    Each colour is the one farthest, in the perceptual OKLab space, from all colours before it. Greys, near-black and
    near-white are left out because they would pass for the photo itself, and so are the most glaring colours, which
    hide it. After some two thousand classes the sequence starts again.

    Args:
        num_classes: number of classes K, at least 0.

    Returns:
        (K, 3) array of uint8, red-green-blue.

    Raises:
        ValueError: if `num_classes` is negative.
    """
    if num_classes < 0:
        raise ValueError(f"num_classes must not be negative, got {num_classes}")
    order = _colour_order()
    return order[np.arange(num_classes) % len(order)]


@lru_cache(maxsize=1)
def _colour_order() -> np.ndarray:
    """Return all candidate colours (N, 3) uint8, each as far as possible from those before it."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    keep = (lab[:, 0] > 0.48) & (lab[:, 0] < 0.88) & (chroma > 0.09) & (chroma < 0.23)
    rgb, lab = rgb[keep], lab[keep]
    # Lightness differences are much less telling than hue once a colour is blended with a photo.
    lab = lab * np.array([0.6, 1.0, 1.0])

    order = np.empty(len(rgb), dtype=np.intp)
    order[0] = int(np.argmin(((rgb.astype(np.int64) - (221, 51, 51)) ** 2).sum(axis=1)))  # a clear red to start from
    distance = np.full(len(rgb), np.inf)
    for i in range(1, len(rgb)):
        distance = np.minimum(distance, ((lab - lab[order[i - 1]]) ** 2).sum(axis=1))
        order[i] = int(np.argmax(distance))
    return rgb[order]


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """Convert (N, 3) uint8 sRGB to (N, 3) OKLab, where Euclidean distance follows what the eye sees."""
    value = rgb.astype(np.float64) / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_cones.T) @ to_lab.T


# --------------------------------------------------------------------------------------------------- pictures


def overlay(
    image: Image.Image,
    mask: np.ndarray,
    class_names: Sequence[str],
    *,
    ignore_index: int = 255,
    background: int | None = None,
    alpha: float = 0.55,
    legend: bool = True,
) -> Image.Image:
    """Draw a segmentation over its photo.

    A labelled pixel becomes `(1 - alpha) * photo + alpha * colour`; ignored pixels and the background, whose colour
    would hide most of many photos, keep the photo. Thin white lines
    separate the regions. The legend below lists the classes that are present, the largest first, with their share of
    the whole picture (ignored pixels count as picture, so shares may add up to less than 100 %). A photo narrower than
    320 px is enlarged by a whole factor so that the legend stays legible.

    Args:
        image: photo of W x H pixels, any mode.
        mask: (H, W) integers, class indices or `ignore_index`.
        class_names: K names; index i of the mask is `class_names[i]`.
        ignore_index: mask value of unlabelled pixels. It wins over a class of the same index.
        background: class that is drawn as the photo itself; the legend shows it, with an empty swatch.
        alpha: weight of the class colour, 0 (photo only) to 1 (colour only).
        legend: whether to add the legend strip.

    Returns:
        RGB picture, as wide as the (enlarged) photo and taller by the legend.

    Raises:
        ValueError: if the mask is not a 2-d integer array of the image's size, holds an index without a name, or
            `alpha` is outside [0, 1].
    """
    mask = np.asarray(mask)
    labels, counts = _checked_labels(image, mask, len(class_names), ignore_index)
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    photo, mask = _enlarged(image.convert("RGB"), mask)
    colours = palette(len(class_names))
    bare = mask == ignore_index
    if background is not None:
        bare |= mask == background
    drawn = Image.fromarray(_blended(np.asarray(photo), mask, colours, bare, alpha))
    if not legend or len(labels) == 0:
        return drawn
    total = image.width * image.height
    ranked = sorted(zip(labels.tolist(), counts.tolist(), strict=True), key=lambda item: (-item[1], item[0]))
    entries = [(index, class_names[index], count / total) for index, count in ranked]
    strip = _legend(drawn.width, entries, colours, background)
    return _stacked(drawn, strip)


def index_mask(mask: np.ndarray, *, num_classes: int | None = None) -> Image.Image:
    """Turn class indices into an image whose pixel values, also once saved as PNG, are the indices themselves.

    Args:
        mask: (H, W) integers in [0, 65535].
        num_classes: number of classes. More than 255 selects 16 bits even where this mask happens to hold only small
            indices, so that all masks of one dataset share a mode. Without it the largest index decides.

    Returns:
        Image of mode "L" (8 bits), or "I;16" when an index exceeds 255 or there are more than 255 classes.

    Raises:
        ValueError: if the mask is not a 2-d integer array or an index lies outside [0, 65535].
    """
    mask = np.asarray(mask)
    _check_integer_2d(mask)
    low, high = (int(mask.min()), int(mask.max())) if mask.size else (0, 0)
    if low < 0 or high > 65535:
        raise ValueError(f"mask indices must lie in [0, 65535], got {low} to {high}")
    wide = high > 255 or (num_classes is not None and num_classes > 255)
    return Image.fromarray(mask.astype(np.uint16 if wide else np.uint8))


def side_by_side(images: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Put pictures next to each other under their titles.

    All are scaled to the width of the widest and aligned at the top, so that a photo and its overlay coincide although
    the overlay carries a legend below.

    Args:
        images: one or more pictures, any size and mode.
        titles: as many titles, shortened where they do not fit. Empty ones take no room if all are empty.

    Returns:
        RGB picture.

    Raises:
        ValueError: if there is no image, or the numbers of images and titles differ.
    """
    if not images or len(images) != len(titles):
        raise ValueError(f"need as many titles as images and at least one, got {len(images)} and {len(titles)}")
    width = max(_MIN_WIDTH, *(image.width for image in images))
    panels = [_to_width(image.convert("RGB"), width) for image in images]
    size = _font_size(width) + 1
    font = _font(size)
    gap = max(8, width // 48)
    header = 2 * size if any(titles) else 0
    height = max(panel.height for panel in panels)
    canvas = Image.new("RGB", (len(panels) * (width + gap) - gap, header + height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = i * (width + gap)
        text = _fitted(_drawable(title, font)[0], font, width)
        draw.text((left + width // 2, header // 2), text, fill=_INK, font=font, anchor="mm")
        canvas.paste(panel, (left, header))
    return canvas


# --------------------------------------------------------------------------------------------------- helpers


def _check_integer_2d(mask: np.ndarray) -> None:
    if mask.ndim != 2 or not (np.issubdtype(mask.dtype, np.integer) or mask.dtype == np.bool_):
        raise ValueError(f"the mask must be a 2-d array of integers, got shape {mask.shape} of {mask.dtype}")


def _checked_labels(
    image: Image.Image, mask: np.ndarray, num_classes: int, ignore_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the class indices in the mask and their pixel counts, after checking that the mask can be drawn."""
    _check_integer_2d(mask)
    if mask.shape != (image.height, image.width):
        raise ValueError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels but the image is {image.width} x {image.height}"
        )
    labels, counts = np.unique(mask.astype(np.int64), return_counts=True)
    counts, labels = counts[labels != ignore_index], labels[labels != ignore_index]
    unnamed = labels[(labels < 0) | (labels >= num_classes)]
    if len(unnamed):
        raise ValueError(f"mask holds class indices {unnamed.tolist()[:10]} but there are {num_classes} class names")
    return labels, counts


def _enlarged(photo: Image.Image, mask: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Enlarge photo and mask by one whole factor to at least the minimum width; whole, so that labels stay exact."""
    factor = -(-_MIN_WIDTH // photo.width)
    if factor <= 1:
        return photo, mask
    photo = photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.BICUBIC)
    return photo, mask.repeat(factor, axis=0).repeat(factor, axis=1)


def _blended(photo: np.ndarray, mask: np.ndarray, colours: np.ndarray, bare: np.ndarray, alpha: float) -> np.ndarray:
    """Blend class colours, but where pixels are bare (H, W), and contour lines into the photo (H, W, 3) uint8."""
    labelled = ~bare
    result = photo.astype(np.float64)
    result[labelled] = (1.0 - alpha) * result[labelled] + alpha * colours[mask[labelled].astype(np.intp)]
    edges = _contours(mask)
    result[edges] = (1.0 - _CONTOUR_ALPHA) * result[edges] + _CONTOUR_ALPHA * _CONTOUR
    return np.rint(result).astype(np.uint8)


def _contours(mask: np.ndarray) -> np.ndarray:
    """Mark (H, W) the pixels whose right or lower neighbour carries another label."""
    edges = np.zeros(mask.shape, dtype=bool)
    edges[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edges[:-1, :] |= mask[:-1, :] != mask[1:, :]
    if min(mask.shape) >= _THICK_CONTOUR_FROM:
        edges = np.asarray(Image.fromarray(edges.astype(np.uint8)).filter(ImageFilter.MaxFilter(3))) > 0
    return edges


def _legend(
    width: int, entries: Sequence[tuple[int, str, float]], colours: np.ndarray, background: int | None
) -> Image.Image:
    """Draw (index, name, share) entries as a strip of aligned columns, in reading order."""
    size = _font_size(width)
    font = _font(size)
    pad, swatch, gap = size, size, size // 2
    shares = [_percent(share) for _, _, share in entries]
    share_width = max(_text_width(text, font) for text in shares)
    room = width - 2 * pad - swatch - 2 * gap - share_width
    names = [_fitted(_legend_name(name, index, font), font, room) for index, name, _ in entries]
    name_width = max(_text_width(text, font) for text in names)
    cell, between = swatch + 2 * gap + name_width + share_width, 3 * gap
    columns = max(1, (width - 2 * pad + between) // (cell + between))
    # As few columns as fill the same number of rows, spread over the whole width.
    rows = -(-len(entries) // columns)
    columns = -(-len(entries) // rows)
    line = round(1.7 * size)
    strip = Image.new("RGB", (width, rows * line + pad), _PAPER)
    draw = ImageDraw.Draw(strip)
    pitch = (width - 2 * pad + between) // columns
    for i, ((index, _, _), name, share) in enumerate(zip(entries, names, shares, strict=True)):
        left, middle = pad + (i % columns) * pitch, pad // 2 + (i // columns) * line + line // 2
        red, green, blue = (int(channel) for channel in colours[index])
        box = (left, middle - swatch // 2, left + swatch - 1, middle - swatch // 2 + swatch - 1)
        fill, outline = (_PAPER, _MUTED) if index == background else ((red, green, blue), None)
        draw.rounded_rectangle(box, radius=max(2, swatch // 5), fill=fill, outline=outline)
        draw.text((left + swatch + gap, middle), name, fill=_INK, font=font, anchor="lm")
        after = left + swatch + 2 * gap + _text_width(name, font)
        draw.text((after, middle), share, fill=_MUTED, font=font, anchor="lm")
    draw.line((0, 0, width, 0), fill=_HAIRLINE)
    return strip


def _stacked(top: Image.Image, bottom: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (top.width, top.height + bottom.height), _PAPER)
    canvas.paste(top, (0, 0))
    canvas.paste(bottom, (0, top.height))
    return canvas


def _to_width(image: Image.Image, width: int) -> Image.Image:
    if image.width == width:
        return image
    return image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.BICUBIC)


def _percent(share: float) -> str:
    return "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


# ------------------------------------------------------------------------------------------------------ text


def _font_size(width: int) -> int:
    return min(28, max(13, width // 34))


@lru_cache(maxsize=32)
def _font(size: int) -> _Font:
    return ImageFont.load_default(size)


def _text_width(text: str, font: _Font) -> int:
    return int(np.ceil(font.getlength(text)))


@lru_cache(maxsize=4096)
def _has_glyph(character: str, font: _Font) -> bool:
    """Tell whether the font draws this character, rather than raising or drawing its stand-in box."""
    if character == " ":
        return True
    try:
        drawn, missing = font.getmask(character), font.getmask("\U0010ffff")
    except UnicodeEncodeError:  # the bitmap font of a Pillow without FreeType
        return character.isascii()
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)


def _substitute(character: str, font: _Font) -> str:
    """Return the character itself if the font has it, else its plain letters (e for é, ss for ß), else "?"."""
    if _has_glyph(character, font):
        return character
    decomposed = unicodedata.normalize("NFKD", character.replace("ß", "ss"))
    plain = "".join(part for part in decomposed if not unicodedata.combining(part))
    return plain if plain and all(_has_glyph(part, font) for part in plain) else "?"


def _drawable(text: str, font: _Font) -> tuple[str, bool]:
    """Return the text on one line and in characters that the font has, and whether any had to become "?"."""
    line = unicodedata.normalize("NFC", " ".join(text.split()))
    shown = [_substitute(character, font) for character in line]
    return "".join(shown), any(new == "?" != old for new, old in zip(shown, line, strict=True))


def _legend_name(name: str, index: int, font: _Font) -> str:
    """Return the name as the legend shows it, led by the class index where the name alone would not identify it."""
    shown, lossy = _drawable(name, font)
    return f"#{index} {shown}".rstrip() if lossy or not shown else shown


def _fitted(text: str, font: _Font, width: int) -> str:
    """Shorten a drawable text, with an ellipsis, to at most `width` pixels."""
    if _text_width(text, font) <= width:
        return text
    while text and _text_width(text.rstrip() + _ELLIPSIS, font) > width:
        text = text[:-1]
    return text.rstrip() + _ELLIPSIS
