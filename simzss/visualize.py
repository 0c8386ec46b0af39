"""Pictures of segmentations: class colours, overlays with a legend, index masks and comparisons.

Needs NumPy and Pillow only, so that programs that draw results need not load a deep-learning framework.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

_MIN_WIDTH = 320  # px: below this a legend next to the picture cannot be read
_THICK_CONTOUR_FROM = 1000  # px of the shorter side: there a single-pixel line gets lost
_CONTOUR_ALPHA = 0.85
_PAPER, _INK, _MUTED, _HAIRLINE = (255, 255, 255), (32, 34, 38), (104, 108, 116), (214, 216, 220)

# OKLab (Ottosson 2020), where Euclidean distance follows what the eye sees.
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)

# Colours --------------------------------------------------------------------------------------------------------------


def palette(num_classes: int) -> np.ndarray:
    """Return one colour per class, (K, 3) uint8 RGB: visually distinct, and the same for class i whatever the count.

    Each colour is the one farthest, in OKLab, from all colours before it. Greys, near-black and near-white are left out
    because they would pass for the photo itself, and so are the most glaring colours, which hide it. After some two
    thousand classes the sequence starts again.

    Args:
        num_classes: number of classes K.

    Raises:
        ValueError: `num_classes` is negative.
    """
    if num_classes < 0:
        raise ValueError(f"num_classes must not be negative, got {num_classes}")
    order = _colour_order()
    return order[np.arange(num_classes) % len(order)]


@lru_cache(maxsize=1)
def _colour_order() -> np.ndarray:
    """All candidate colours (N, 3) uint8, each as far as possible from those before it."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    keep = (lab[:, 0] > 0.48) & (lab[:, 0] < 0.88) & (chroma > 0.09) & (chroma < 0.23)
    # Lightness differences are much less telling than hue once a colour is blended with a photo.
    rgb, lab = rgb[keep], lab[keep] * np.array([0.6, 1.0, 1.0])
    order = [int(np.argmin(((rgb.astype(np.int64) - (221, 51, 51)) ** 2).sum(axis=1)))]  # a clear red to start from
    distance = np.full(len(rgb), np.inf)
    while len(order) < len(rgb):
        distance = np.minimum(distance, ((lab - lab[order[-1]]) ** 2).sum(axis=1))
        order.append(int(np.argmax(distance)))
    return rgb[order]


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """Convert (N, 3) uint8 sRGB to (N, 3) OKLab."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T


# Pictures -------------------------------------------------------------------------------------------------------------


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
    would hide most of many photos, keep the photo. Thin white lines separate the regions. The legend below lists the
    classes that are present, the largest first, with their share of the whole picture (ignored pixels count as picture,
    so shares may add up to less than 100 %). A photo narrower than 320 px is enlarged by a whole factor so that the
    legend stays legible.

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
        ValueError: the mask is not a 2-d integer array of the image's size or holds an index without a name, or `alpha`
            is outside [0, 1].
    """
    mask = _checked(mask)
    if mask.shape != (image.height, image.width):
        raise ValueError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels but the image is {image.width} x {image.height}"
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    shares = _shares(mask, ignore_index, len(class_names))
    factor = max(1, -(-_MIN_WIDTH // image.width))  # whole, so that labels stay exact
    photo = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    mask = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    colours = palette(len(class_names))
    labelled = (mask != ignore_index) & (True if background is None else mask != background)
    pixels = np.asarray(photo).astype(np.float64)
    pixels[labelled] = (1.0 - alpha) * pixels[labelled] + alpha * colours[mask[labelled].astype(np.intp)]
    edges = _contours(mask)
    pixels[edges] = (1.0 - _CONTOUR_ALPHA) * pixels[edges] + _CONTOUR_ALPHA * 255.0
    drawn = Image.fromarray(np.rint(pixels).astype(np.uint8))
    if not legend or not shares:
        return drawn
    strip = _legend(drawn.width, [(index, class_names[index], share) for index, share in shares], colours, background)
    canvas = Image.new("RGB", (drawn.width, drawn.height + strip.height), _PAPER)
    canvas.paste(drawn, (0, 0))
    canvas.paste(strip, (0, drawn.height))
    return canvas


def index_mask(mask: np.ndarray, *, num_classes: int | None = None) -> Image.Image:
    """Turn class indices into an image whose pixel values, also once saved as PNG, are the indices themselves.

    Args:
        mask: (H, W) integers in [0, 65535].
        num_classes: more than 255 select 16 bits whatever the mask holds, so that all masks of a dataset share a mode.

    Returns:
        Image of mode "L" (8 bits), or "I;16" when an index exceeds 255 or there are more than 255 classes.

    Raises:
        ValueError: the mask is not a 2-d integer array or an index lies outside [0, 65535].
    """
    mask = _checked(mask)
    low, high = (int(mask.min()), int(mask.max())) if mask.size else (0, 0)
    if low < 0 or high > 65535:
        raise ValueError(f"mask indices must lie in [0, 65535], got {low} to {high}")
    wide = high > 255 or (num_classes is not None and num_classes > 255)
    return Image.fromarray(mask.astype(np.uint16 if wide else np.uint8))


def side_by_side(images: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Put pictures next to each other under their titles, as one RGB picture.

    All are scaled to the width of the widest and aligned at the top, so that a photo and its overlay coincide although
    the overlay carries a legend below.

    Args:
        images: one or more pictures, any size and mode.
        titles: as many titles, shortened where they do not fit. Empty ones take no room if all are empty.

    Raises:
        ValueError: no image, or the numbers of images and titles differ.
    """
    if not images or len(images) != len(titles):
        raise ValueError(f"need as many titles as images and at least one, got {len(images)} and {len(titles)}")
    width = max(_MIN_WIDTH, *(image.width for image in images))
    heights = [max(1, round(image.height * width / image.width)) for image in images]
    font = _font(_font_size(width) + 1)
    gap, header = max(8, width // 48), 2 * (_font_size(width) + 1) if any(titles) else 0
    canvas = Image.new("RGB", (len(images) * (width + gap) - gap, header + max(heights)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (image, height, title) in enumerate(zip(images, heights, titles, strict=True)):
        left, text = i * (width + gap), _fitted(_legible(title, font), font, width)
        draw.text((left + width // 2, header // 2), text, fill=_INK, font=font, anchor="mm")
        canvas.paste(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), (left, header))
    return canvas


# Parts ----------------------------------------------------------------------------------------------------------------


def _checked(mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 2 or not (np.issubdtype(mask.dtype, np.integer) or mask.dtype == np.bool_):
        raise ValueError(f"the mask must be a 2-d array of integers, got shape {mask.shape} of {mask.dtype}")
    return mask


def _shares(mask: np.ndarray, ignore_index: int, num_classes: int) -> list[tuple[int, float]]:
    """Class indices in the mask with their share of all pixels, the largest first."""
    labels, counts = np.unique(mask[mask != ignore_index].astype(np.int64), return_counts=True)
    if unnamed := [label for label in labels.tolist() if not 0 <= label < num_classes]:
        raise ValueError(f"mask holds class indices {unnamed[:10]} but there are {num_classes} class names")
    return sorted(zip(labels.tolist(), (counts / mask.size).tolist(), strict=True), key=lambda item: -item[1])


def _contours(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose right or lower neighbour has another label."""
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
    font, pad, gap, line = _font(size), size, size // 2, round(1.7 * size)
    shares = ["< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %" for _, _, share in entries]
    fixed = size + 2 * gap + max(_text_width(text, font) for text in shares)  # the swatch is as large as the text
    names = [_fitted(_legend_name(name, index, font), font, width - 2 * pad - fixed) for index, name, _ in entries]
    cell = fixed + max(_text_width(text, font) for text in names)
    columns = max(1, (width - 2 * pad + 3 * gap) // (cell + 3 * gap))
    # As few columns as fill the same number of rows, spread over the whole width.
    rows = -(-len(entries) // columns)
    columns = -(-len(entries) // rows)
    pitch = (width - 2 * pad + 3 * gap) // columns
    strip = Image.new("RGB", (width, rows * line + pad), _PAPER)
    draw = ImageDraw.Draw(strip)
    for i, ((index, _, _), name, share) in enumerate(zip(entries, names, shares, strict=True)):
        left, middle = pad + (i % columns) * pitch, pad // 2 + (i // columns) * line + line // 2
        box = (left, middle - size // 2, left + size - 1, middle - size // 2 + size - 1)
        bare = index == background
        fill = _PAPER if bare else tuple(colours[index].tolist())
        draw.rounded_rectangle(box, radius=max(2, size // 5), fill=fill, outline=_MUTED if bare else None)
        draw.text((left + size + gap, middle), name, fill=_INK, font=font, anchor="lm")
        after = left + size + 2 * gap + _text_width(name, font)
        draw.text((after, middle), share, fill=_MUTED, font=font, anchor="lm")
    draw.line((0, 0, width, 0), fill=_HAIRLINE)
    return strip


# Text -----------------------------------------------------------------------------------------------------------------

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def _font_size(width: int) -> int:
    return min(28, max(13, width // 34))


@lru_cache(maxsize=32)
def _font(size: int) -> _Font:
    return ImageFont.load_default(size)


def _text_width(text: str, font: _Font) -> int:
    return int(np.ceil(font.getlength(text)))


@lru_cache(maxsize=4096)
def _has_glyph(character: str, font: _Font) -> bool:
    """Tell whether the font draws this character, rather than its stand-in box."""
    drawn, missing = font.getmask(character), font.getmask("\U0010ffff")
    return character == " " or drawn.size != missing.size or bytes(drawn) != bytes(missing)


def _legible(text: str, font: _Font) -> str:
    """Return the text on one line; a character that the font lacks as its plain letters (e for é), else as "?"."""
    shown = []
    for character in unicodedata.normalize("NFC", " ".join(text.split())):
        decomposed = unicodedata.normalize("NFKD", character.replace("ß", "ss"))
        plain = "".join(part for part in decomposed if not unicodedata.combining(part))
        candidates = (part for part in (character, plain) if part and all(_has_glyph(one, font) for one in part))
        shown.append(next(candidates, "?"))
    return "".join(shown)


def _legend_name(name: str, index: int, font: _Font) -> str:
    """Return the name as the legend shows it, led by the class index where the name alone would not identify it."""
    shown = _legible(name, font)
    return shown if shown and shown.count("?") == name.count("?") else f"#{index} {shown}".rstrip()


def _fitted(text: str, font: _Font, width: int) -> str:
    """Shorten a legible text, with an ellipsis, to at most `width` pixels."""
    if _text_width(text, font) <= width:
        return text
    while text and _text_width(text.rstrip() + "...", font) > width:
        text = text[:-1]
    return text.rstrip() + "..."
