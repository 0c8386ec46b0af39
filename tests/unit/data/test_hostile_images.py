"""Image files of strangers that would start a program or fill the memory, in every reader of them."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from data_prep.mask_files import photo_size, read_labels
from simzss.data.images import decode_image
from simzss.data.transforms import RandomCrop, WholeImage
from simzss.errors import DataError
from simzss.segmentation.inference.prepare import read_photo
from tests.support.files import encode
from tests.support.memory import peak_of

pytestmark = pytest.mark.hostile

MB = 1 << 20
SIDE = 9_459  # of the largest square that is opened
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    "read", [lambda path: decode_image(path.read_bytes()), decode_image, read_photo, read_labels, photo_size]
)
def test_postscript_starts_no_program(tmp_path, monkeypatch, read):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/trace\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = tmp_path / "x.jpg"
    path.write_bytes(POSTSCRIPT)
    try:
        assert read(path) is None
    except (ValueError, DataError) as error:
        assert "no known format" in str(error)
    assert not (tmp_path / "trace").exists()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, row: int, *chunks: bytes) -> bytes:
    """A PNG of zeros, with more chunks; `row` bytes a row."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(row + 1)) for _ in range(height if row else 0)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IDAT", rows), chunk(b"IEND", b"")])


def frames(form: str) -> bytes:
    buffer = io.BytesIO()
    more = [Image.new("L", (1500, 1500), shade) for shade in range(1, 60)]
    Image.new("L", (1500, 1500)).save(buffer, form, save_all=True, append_images=more)
    return buffer.getvalue()


def claiming_jpeg2000() -> bytes:
    data = bytearray(encode(Image.new("RGB", (64, 64)), "JPEG2000"))
    sizes = data.index(b"\xff\x4f\xff\x51")
    for place in (sizes + 8, sizes + 24, data.index(b"ihdr") + 4):
        struct.pack_into(">II", data, place, SIDE, SIDE)
    return bytes(data)


ZEROS = zlib.compress(bytes(200 * MB), 1)
SMALL = {
    "4 x 40,000": lambda: png(4, 40_000, 8, 2, 12),
    "1 x 80,000,000": lambda: png(1, 80_000_000, 8, 2, 0),
    "1:500": lambda: png(4, 2000, 8, 2, 12),
    "zTXt": lambda: png(8, 8, 8, 2, 24, chunk(b"zTXt", b"a\0\0" + ZEROS)),
    "iCCP": lambda: png(8, 8, 8, 2, 24, chunk(b"iCCP", b"a\0\0" + ZEROS)),
    "iTXt": lambda: png(8, 8, 8, 2, 24, chunk(b"iTXt", b"a\0\1\0\0\0" + ZEROS)),
    "frames of TIFF": lambda: frames("TIFF"),
    "frames of GIF": lambda: frames("GIF"),
}
LARGE = {
    "RGBA": lambda: png(SIDE, SIDE, 8, 6, 4 * SIDE),
    "16 bits": lambda: png(SIDE, SIDE, 16, 0, 2 * SIDE, chunk(b"tRNS", b"\0\0")),
    "palette": lambda: png(SIDE, SIDE, 8, 3, SIDE, chunk(b"PLTE", b"\0\0\0"), chunk(b"tRNS", b"\0")),
    "JPEG 2000": claiming_jpeg2000,
}


@pytest.mark.parametrize(
    ("kind", "most"),
    [*((kind, 100) for kind in SMALL), *(pytest.param(kind, 2000, marks=pytest.mark.slow) for kind in LARGE)],
)
def test_memory_stays_bounded(kind, most):
    """Of what is opened at all the largest takes a gigabyte: as it is, and in the colours that are shown."""
    data = (SMALL | LARGE)[kind]()

    def read() -> None:
        for transform in (WholeImage(64), RandomCrop(64)):
            try:
                transform(decode_image(data))
            except ValueError as error:
                assert "too large" in str(error) or "too long" in str(error) or "unreadable" in str(error)
                return

    assert peak_of(read) < most * MB


def test_file_of_many_bytes_is_not_read(tmp_path):
    path = tmp_path / "x.png"
    with Path(path).open("wb") as stream:
        stream.truncate(600 * MB)
    with pytest.raises(ValueError, match="image too large: 629 MB"):
        decode_image(path)
