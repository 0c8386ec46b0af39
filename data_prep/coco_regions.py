"""Regions of COCO annotations as boolean masks: run lengths, packed or plain, and polygons."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

_FAR = 100_000  # pixels; the polygon code of pycocotools crashes the process on coordinates beyond its integers


def decode_region(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Mask (H, W) bool of the `segmentation` of an annotation.

    A list holds polygons [x, y, x, y, …], drawn by pycocotools as COCO means them. A dictionary holds `size` and
    `counts`, lengths of runs of 0 and 1 in turn, down the columns: as list, or packed into text.

    Raises:
        ValueError: another shape, or a region of an image of another size.
    """
    if isinstance(segmentation, list):
        return _draw_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("the segmentation is neither a list of polygons nor run lengths with size and counts")
    if segmentation["size"] != [height, width]:
        raise ValueError(f"the region is for an image of size {segmentation['size']}, not {[height, width]}")
    counts = segmentation["counts"]
    return _fill(_unpack(counts) if isinstance(counts, str) else _integers(counts), height, width)


def _fill(lengths: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mask (H, W) bool of run lengths (R,). pycocotools would fill what they do not reach with chance values."""
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(f"the run lengths do not add up to {height} x {width} pixels")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def _integers(counts: Any) -> np.ndarray:
    """Plain run lengths (R,) int64."""
    if not isinstance(counts, list) or not all(type(count) is int and abs(count) < 2**31 for count in counts):
        raise ValueError("the counts are neither text nor a list of integers")
    return np.array(counts, dtype=np.int64)


def _unpack(text: str) -> np.ndarray:
    """Run lengths (R,) int64 packed into text: 5 bits a character, lowest first, 32 marks that more follow; the last
    one's 16 is the sign. From the fourth on, a length is stored as difference to the last but one."""  # fmt: skip
    if not text.isascii():
        raise ValueError("the packed counts hold characters that are none")
    digits = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if digits.size == 0:
        return digits
    if digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("the packed counts hold characters that are none, or end too early")
    last = np.flatnonzero(digits & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    if place.max() > 6:
        raise ValueError("the packed counts hold a number that is too large")
    values = np.add.reduceat((digits & 31) << (5 * place), first)
    values -= np.where(digits[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def _draw_polygons(polygons: list[Any], height: int, width: int) -> np.ndarray:
    """Union (H, W) bool of polygons."""
    drawable = []
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(isinstance(value, int | float) for value in polygon):
            raise ValueError("a polygon is no list of numbers")
        if len(polygon) % 2 or not all(abs(value) <= _FAR for value in polygon):
            raise ValueError("a polygon has a coordinate without its partner, or one that is none")
        # Two points are a line, without area; pycocotools would take four numbers for a box.
        if len(polygon) >= 6:
            drawable.append([float(value) for value in polygon])
    if not polygons:
        raise ValueError("the segmentation holds no polygon")
    if not drawable:
        return np.zeros((height, width), dtype=bool)
    packed = coco_mask.merge(coco_mask.frPyObjects(drawable, height, width))["counts"]
    return _fill(_unpack(packed.decode("ascii")), height, width)
