"""Decode regions of COCO annotations, polygons or run lengths, to masks. The only pycocotools import."""

from typing import Any

import numpy as np

from simzss.extras import need

_FAR = 100_000  # pixels; the polygon code of pycocotools crashes or hangs on coordinates beyond its integers


def decode_region(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return the mask (H, W) bool of the `segmentation` of an annotation.

    Args:
        segmentation: polygons [x, y, x, y, …], or run lengths `size` and `counts` as list or packed into text.
        height: of the image.
        width: of the image.

    Raises:
        ValueError: another shape, or a region of an image of another size.
    """
    coco = need("pycocotools.mask", "prep")
    if isinstance(segmentation, list):
        polygons = _drawable(segmentation)
        if not polygons:
            return np.zeros((height, width), dtype=bool)
        return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("the segmentation is neither a list of polygons nor run lengths with size and counts")
    if segmentation["size"] != [height, width]:
        raise ValueError(f"the region is for an image of size {segmentation['size']}, not {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width:
            raise ValueError(f"the run lengths are no integers that add up to {height} x {width} pixels")
        return coco.decode(coco.frPyObjects(segmentation, height, width)).astype(bool)
    if not isinstance(counts, str):
        raise ValueError("the counts are neither text nor a list of integers")
    return _unpack(segmentation, coco)


def _unpack(packed: dict[str, Any], coco: Any) -> np.ndarray:
    height, width = packed["size"]
    fault = f"the run lengths are not packed by COCO's rules, or do not add up to {height} x {width} pixels"
    try:
        mask = coco.decode(packed)
    except (ValueError, OverflowError) as error:
        raise ValueError(fault) from error
    # Pixels that the runs do not reach hold whatever was in memory: packed again, they would be runs of their own.
    if coco.encode(mask)["counts"].decode("ascii") != packed["counts"]:
        raise ValueError(fault)
    return mask.astype(bool)


def _drawable(polygons: list[Any]) -> list[list[float]]:
    """Check polygons and leave out those without area."""
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(isinstance(value, int | float) for value in polygon):
            raise ValueError("a polygon is no list of numbers")
        if len(polygon) % 2 or not all(abs(value) <= _FAR for value in polygon):
            raise ValueError("a polygon has a coordinate without its partner, or one that is none")
    if not polygons:
        raise ValueError("the segmentation holds no polygon")
    # Two points are a line; pycocotools would take four numbers for a box.
    return [[float(value) for value in polygon] for polygon in polygons if len(polygon) >= 6]
