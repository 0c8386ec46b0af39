"""Connected regions of class probabilities, from which a promptable segmenter gets its prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_AROUND = np.ones((3, 3), dtype=np.int8)
"""Connectivity: all eight pixels around. A thin diagonal part belongs to its object; by sides alone it would fall into
pieces, each with a prompt of its own or too small for any."""


@dataclass(frozen=True)
class Regions:
    """P regions of a map of h x w pixels, ordered by class, then by their first pixel in reading order. On the CPU.

    Attributes:
        class_index: (P,) int64, rows of the probabilities.
        spans: (P, 4) int64 top, left, bottom, right in pixels of the map; bottom and right are not inside.
        points: (P, 2) float32 x, y: centre of the most probable pixel, relative to width and height; of several the
            first in reading order.
        area: (P,) int64 pixels.
        cells: for each region the pixels of its span (bottom - top, right - left) that belong to it.
        shape: h and w.
        small: number of regions left out for their size, by class index.
    """

    class_index: Tensor
    spans: Tensor
    points: Tensor
    area: Tensor
    cells: tuple[np.ndarray, ...]
    shape: tuple[int, int]
    small: dict[int, int]

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def boxes(self) -> Tensor:
        """Return (P, 4) float32 x0, y0, x1, y1: outer edges of the outermost pixels, relative to width and height."""
        height, width = self.shape
        return self.spans[:, [1, 0, 3, 2]] / torch.tensor([width, height, width, height])

    def union(self, members: Sequence[int]) -> Tensor:
        """Return the pixels of these regions: (h, w) bool."""
        pixels = torch.zeros(self.shape, dtype=torch.bool)
        for member in members:
            top, left, bottom, right = self.spans[member].tolist()
            pixels[top:bottom, left:right] |= torch.from_numpy(self.cells[member])
        return pixels


def regions(probabilities: Tensor, threshold: float, min_area: float, classes: Sequence[int]) -> Regions:
    """Find connected regions in which a class is more probable than a threshold; those of several classes may overlap.

    Args:
        probabilities: (K, h, w).
        threshold: a pixel belongs to a region of every class whose probability is above.
        min_area: minimum number of pixels of this map in a region; smaller ones are counted.
        classes: rows to search, such as all but the background's.
    """
    height, width = probabilities.shape[1:]
    wanted = torch.as_tensor(classes, dtype=torch.long, device=probabilities.device)
    present = wanted[probabilities[wanted].flatten(1).amax(dim=1) > threshold].tolist()
    class_index, spans, points, areas = [], [], [], []
    cells: list[np.ndarray] = []
    small: dict[int, int] = {}
    for row in present:
        plane = probabilities[row].float().cpu().numpy()
        numbered, _ = ndimage.label(plane > threshold, structure=_AROUND)
        area = np.bincount(numbered.ravel())
        area[0] = 0  # outside all regions
        if left_out := int((area[1:] < min_area).sum()):
            small[row] = left_out
        boxes = ndimage.find_objects(numbered)
        for number in np.flatnonzero(area >= max(min_area, 1)):
            box = boxes[number - 1]
            inside = numbered[box] == number
            y, x = np.unravel_index(np.where(inside, plane[box], -np.inf).argmax(), inside.shape)
            top, left = box[0].start, box[1].start
            class_index.append(row)
            spans.append((top, left, box[0].stop, box[1].stop))
            points.append(((left + x + 0.5) / width, (top + y + 0.5) / height))
            areas.append(int(area[number]))
            cells.append(inside)
    return Regions(
        class_index=torch.tensor(class_index, dtype=torch.long),
        spans=torch.tensor(spans, dtype=torch.long).view(-1, 4),
        points=torch.tensor(points, dtype=torch.float32).view(-1, 2),
        area=torch.tensor(areas, dtype=torch.long),
        cells=tuple(cells),
        shape=(height, width),
        small=small,
    )
