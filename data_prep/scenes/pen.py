"""Draw flat parts of objects into an index image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

REACH = 1.36  # half the patch, in object units: a turned drawing (about -1..1 in x and y) still fits

# A part's fill: a number is the brightness of the object's own colour, a triple a colour that stays as it is.
Fill = float | tuple[int, int, int]
Point = tuple[float, float]
DARK, STEEL, CREAM, BARK = (35, 33, 36), (165, 168, 174), (245, 238, 215), (92, 60, 36)
GLASS, LEAF, SUN = (178, 214, 232), (58, 128, 48), (250, 205, 70)


class Pen:
    """A pen for flat parts in object units (x right, y down, about -1..1) into an index image of `side` pixels."""

    def __init__(self, side: int, angle: float, stretch: Point) -> None:
        self.image = Image.new("L", (side, side))
        self.fills: list[Fill] = []
        self._draw = ImageDraw.Draw(self.image)
        self._unit = side / (2 * REACH)
        self._turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        self._stretch = np.array(stretch)

    def _place(self, points: Iterable[Point]) -> list[float]:
        return (((np.array(points) * self._stretch) @ self._turn + REACH) * self._unit).ravel().tolist()

    def _index(self, fill: Fill) -> int:
        if fill not in self.fills:
            self.fills.append(fill)
        return self.fills.index(fill) + 1

    def poly(self, points: Iterable[Point], fill: Fill) -> None:
        """Fill a polygon."""
        self._draw.polygon(self._place(points), fill=self._index(fill))

    def line(self, points: Iterable[Point], width: float, fill: Fill) -> None:
        """Draw a line of `width` object units through the points."""
        pixels = max(1, round(width * self._unit))
        self._draw.line(self._place(points), fill=self._index(fill), width=pixels, joint="curve")

    def disc(self, x: float, y: float, rx: float, ry: float, fill: Fill, start: float = 0, end: float = 360) -> None:
        """Fill an ellipse, or the slice of it between two angles in degrees (0 is right, 90 is down)."""
        centre = [] if end - start >= 360 else [(x, y)]
        self.poly(centre + arc(x, y, rx, ry, start, end), fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Fill) -> None:
        """Fill a rectangle."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def blob(self, points: Iterable[Point], fill: Fill) -> None:
        """Fill a polygon with rounded corners (three rounds of corner cutting)."""
        ring = np.array(points)
        for _ in range(3):
            after = np.roll(ring, -1, axis=0)
            ring = np.stack([0.75 * ring + 0.25 * after, 0.25 * ring + 0.75 * after], axis=1).reshape(-1, 2)
        self.poly(ring, fill)

    def leaf(self, base: Point, tip: Point, width: float, fill: Fill) -> None:
        """Fill a pointed leaf of `width` between two points."""
        (x0, y0), (x1, y1) = base, tip
        t = np.linspace(0, 1, 12)
        bulge = width * np.sin(np.pi * t**0.8) / max(np.hypot(x1 - x0, y1 - y0), 1e-6) / 2
        x, y = x0 + (x1 - x0) * t, y0 + (y1 - y0) * t
        one, two = (x - (y1 - y0) * bulge, y + (x1 - x0) * bulge), (x + (y1 - y0) * bulge, y - (x1 - x0) * bulge)
        self.poly(np.concatenate([np.stack(one, 1), np.stack(two, 1)[::-1]]), fill)


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Return points on an ellipse between two angles in degrees (0 is right, 90 is down)."""
    t = np.radians(np.linspace(start, end, max(6, int(abs(end - start) / 8))))
    return list(zip((x + rx * np.cos(t)).tolist(), (y + ry * np.sin(t)).tolist(), strict=True))
