"""Image files of strangers, decoded: every kind that Pillow can write, with the pixels that a person would see."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from simzss.data.images import decode_image, to_rgb
from tests.support.files import encode, image_bytes, picture

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def corners(image):
    """Colours of the corners, clockwise from the upper left; large fields of colour survive JPEG."""
    w, h = image.size
    return [image.getpixel(place) for place in ((1, 1), (w - 2, 1), (w - 2, h - 2), (1, h - 2))]


def fields(size=(64, 48)):
    """Red, green, blue and white quarters, clockwise from the upper left."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    h, w = size[1] // 2, size[0] // 2
    pixels[:h, :w], pixels[:h, w:], pixels[h:, w:], pixels[h:, :w] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


def near(found, expected, tolerance=12):
    return np.abs(np.array(found) - np.array(expected)).max() <= tolerance


# EXIF orientation: colours of the corners of what the camera saw, clockwise from the upper left, when the file holds
# red, green, blue, white.
SEEN = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [BLUE, WHITE, RED, GREEN],
    4: [WHITE, BLUE, GREEN, RED],
    5: [RED, WHITE, BLUE, GREEN],
    6: [WHITE, RED, GREEN, BLUE],
    7: [BLUE, GREEN, RED, WHITE],
    8: [GREEN, BLUE, WHITE, RED],
}


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_orientation(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    fields().save(buffer, form, exif=exif, **({"quality": 95} if form != "png" else {}))
    image = decode_image(buffer.getvalue())
    assert image.size == ((64, 48) if orientation < 5 else (48, 64))
    assert near(corners(image), SEEN[orientation], 25)


def test_broken_exif_does_no_harm():
    buffer = io.BytesIO()
    fields().save(buffer, "jpeg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff broken")
    assert decode_image(buffer.getvalue()).size == (64, 48)


def test_orientation_is_not_the_business_of_to_rgb():
    """Masks of benchmarks follow the pixels as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    fields().save(buffer, "png", exif=exif)
    assert to_rgb(Image.open(buffer)).size == (64, 48)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode):
    image = Image.new(mode, (4, 1))
    values = [(0, 0), (0, 255), (200, 255), (100, 128)]
    image.putdata([(v, v, v, a) if mode == "RGBA" else (v, a) for v, a in values])
    found = np.asarray(decode_image(encode(image)))[0, :, 0]
    assert near(found, [255, 0, 200, 255 * (1 - 128 / 255) + 100 * 128 / 255], 1)


def test_transparent_colour_of_a_palette():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([*RED, *GREEN, *BLUE])
    buffer = io.BytesIO()
    image.save(buffer, "png", transparency=1)
    assert [tuple(p) for p in np.asarray(decode_image(buffer.getvalue()))[0].tolist()] == [RED, WHITE, BLUE]


def test_16_bit_grey_is_scaled():
    values = np.array([[0, 255, 256, 32_768, 65_535]], np.uint16)
    found = np.asarray(decode_image(encode(Image.fromarray(values))))
    assert found.shape == (1, 5, 3)
    assert found[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P", "YCbCr", "CMYK", "I", "F"])
def test_modes(mode):
    form = "jpeg" if mode in ("YCbCr", "CMYK") else "tiff" if mode in ("I", "F") else "png"
    image = decode_image(
        encode(fields().convert("L").convert(mode) if mode in ("1", "I", "F") else fields().convert(mode), form)
    )
    assert image.mode == "RGB" and image.size == (64, 48)
    if mode in ("P", "YCbCr", "CMYK"):
        assert near(corners(image), [RED, GREEN, BLUE, WHITE], 40)
    if mode == "L":
        grey = [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in (RED, GREEN, BLUE, WHITE)]
        assert near([corner[0] for corner in corners(image)], grey, 2)


def test_cmyk_as_adobe_writes_it():
    """Adobe's JPEGs hold inverted inks, and say so."""
    inks = fields().convert("CMYK")
    plain = encode(inks, "jpeg")
    assert b"Adobe" in plain  # Pillow writes as Adobe does
    assert near(corners(decode_image(plain)), [RED, GREEN, BLUE, WHITE], 40)


def claimed(width, height):
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)], ids=["warned of", "refused"])
def test_decompression_bombs_are_not_decoded(size, recwarn):
    with pytest.raises(ValueError, match="image too large"):
        decode_image(claimed(*size))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the file is empty"),
        (b"no image", "no known format"),
        (image_bytes(form="jpeg", size=(200, 200))[:900], "truncated"),
        (image_bytes(size=(200, 200))[:900], "unreadable image"),
        (claimed(10, 10), "unreadable image"),
    ],
)
def test_what_is_no_image(data, says):
    with pytest.raises(ValueError, match=says) as caught:
        decode_image(data)
    assert "0x" not in str(caught.value)


def test_plain_photo_is_itself():
    assert (np.asarray(decode_image(image_bytes(3))) == np.asarray(picture(3))).all()
