"""Draw eighteen kinds of objects in object units (x right, y down, about -1..1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .pen import BARK, CREAM, DARK, GLASS, LEAF, STEEL, SUN, Pen, arc


def _apple(p: Pen, rng: np.random.Generator) -> None:
    for x in (-0.36, 0.36):
        p.disc(x, 0.02, 0.56, 0.62, 1.0)
        p.disc(x * 0.7, 0.36, 0.5, 0.58, 1.0)
    p.disc(0, -0.48, 0.3, 0.1, 0.6)
    p.line([(0, -0.46), (0.03, -0.75), (0.12, -0.98)], 0.11, BARK)
    p.leaf((0.08, -0.68), (0.8, -0.92), 0.34, LEAF)
    p.line([(0.1, -0.7), (0.66, -0.87)], 0.03, (150, 200, 120))
    p.leaf((-0.62, 0.28), (-0.42, -0.38), 0.2, 1.45)


def _ball(p: Pen, rng: np.random.Generator) -> None:
    p.disc(0, 0, 0.92, 0.92, 1.0)
    turn = rng.uniform(0, 72)
    hexagons = [(np.cos(np.radians(turn + 72 * k)), np.sin(np.radians(turn + 72 * k))) for k in range(5)]
    for k, (x, y) in enumerate(hexagons):
        p.line([(x * 0.3, y * 0.3), (x * 0.7, y * 0.7)], 0.05, DARK)
        rim = arc(0, 0, 0.92, 0.92, turn + 72 * k - 17, turn + 72 * k + 17)
        p.poly([*rim, (x * 0.64, y * 0.64)], DARK)
        nx, ny = hexagons[(k + 1) % 5]
        p.line([(x * 0.68, y * 0.68), ((x + nx) * 0.46, (y + ny) * 0.46), (nx * 0.68, ny * 0.68)], 0.05, DARK)
    p.poly([(x * 0.36, y * 0.36) for x, y in hexagons], DARK)


def _boat(p: Pen, rng: np.random.Generator) -> None:
    p.line([(0, 0.4), (0, -0.98)], 0.08, BARK)
    p.poly([(0.07, -0.9), (0.07, 0.24), (0.85, 0.24)], (240, 240, 232))
    for y in (-0.45, -0.15, 0.08):
        p.line([(0.09, y), (0.07 + 0.78 * (y + 0.9) / 1.14, y)], 0.03, (190, 190, 186))
    p.poly([(-0.08, -0.7), (-0.08, 0.24), (-0.68, 0.24)], 1.0)
    p.poly([(0, -1.0), (0, -0.85), (-0.28, -0.92)], (220, 50, 40))
    p.poly([(-1.0, 0.36), (1.0, 0.36), *arc(0.4, 0.36, 0.5, 0.56, 50, 90), *arc(-0.4, 0.36, 0.5, 0.56, 90, 140)], 1.0)
    p.poly([(-1.0, 0.36), (1.0, 0.36), (0.96, 0.46), (-0.96, 0.46)], CREAM)
    for x in (-0.5, -0.17, 0.17, 0.5):
        p.disc(x, 0.63, 0.1, 0.1, STEEL)
        p.disc(x, 0.63, 0.065, 0.065, DARK)


def _book(p: Pen, rng: np.random.Generator) -> None:
    p.poly([(-0.62, 0.72), (0.62, 0.72), (0.8, 0.96), (-0.45, 0.96)], CREAM)
    p.poly([(0.62, -0.95), (0.8, -0.7), (0.8, 0.96), (0.62, 0.72)], CREAM)
    for t in (0.25, 0.5, 0.75):
        x, y = 0.62 + 0.18 * t, 0.24 * t
        p.line([(-0.62 + 0.17 * t, 0.72 + y), (x, 0.72 + y), (x, -0.95 + y)], 0.02, (160, 150, 125))
    p.line([(-0.66, 0.74), (-0.47, 0.98), (0.82, 0.98), (0.82, -0.7)], 0.05, 0.6)
    p.box(-0.7, -0.95, 0.64, 0.74, 1.0)
    p.box(-0.7, -0.95, -0.52, 0.74, 0.62)
    p.box(-0.34, -0.72, 0.46, -0.18, CREAM)
    for y, w in ((-0.58, 0.62), (-0.45, rng.uniform(0.3, 0.6)), (-0.32, rng.uniform(0.2, 0.5))):
        p.line([(0.06 - w / 2, y), (0.06 + w / 2, y)], 0.06, DARK)
    p.disc(0.06, 0.3, 0.24, 0.24, SUN)
    p.disc(0.06, 0.3, 0.14, 0.14, 0.7)


def _bottle(p: Pen, rng: np.random.Generator) -> None:
    p.blob([(-0.17, -0.8), (0.17, -0.8), (0.17, -0.4), (0.42, -0.2), (0.44, 0.1), (0.44, 0.98), (0.44, 0.98),
            (-0.44, 0.98), (-0.44, 0.98), (-0.44, 0.1), (-0.42, -0.2), (-0.17, -0.4)], 1.0)  # fmt: skip
    p.box(-0.15, -0.84, 0.15, -0.5, 1.0)
    p.box(-0.19, -1.0, 0.19, -0.78, STEEL)
    for x in (-0.12, -0.04, 0.04, 0.12):
        p.line([(x, -0.98), (x, -0.8)], 0.025, DARK)
    p.box(-0.42, 0.12, 0.42, 0.68, CREAM)
    p.disc(0, 0.3, 0.16, 0.13, 0.85)
    p.line([(-0.28, 0.52), (0.28, 0.52)], 0.05, DARK)
    p.line([(-0.2, 0.61), (0.2, 0.61)], 0.03, DARK)
    p.leaf((-0.3, 0.06), (-0.24, -0.28), 0.1, 1.6)


def _butterfly(p: Pen, rng: np.random.Generator) -> None:
    upper = np.array([(0.04, -0.2), (0.35, -0.85), (0.9, -1.0), (1.05, -0.55), (0.8, -0.05), (0.04, 0.1)])
    lower = np.array([(0.04, -0.02), (0.55, 0.0), (0.88, 0.3), (0.8, 0.8), (0.45, 0.95), (0.15, 0.5)])
    for side in (-1.0, 1.0):
        for wing in (lower, upper):
            p.blob(wing * (side, 1), DARK)
            p.blob((wing.mean(0) + (wing - wing.mean(0)) * 0.8) * (side, 1), 1.0 if wing is upper else 0.85)
        for x, y in ((0.93, -0.8), (0.97, -0.58), (0.88, -0.35), (0.76, 0.32), (0.75, 0.6), (0.52, 0.8)):
            p.disc(x * side * 0.93, y * 0.96, 0.045, 0.045, CREAM)
        p.disc(side * 0.58, -0.52, 0.15, 0.15, DARK)
        p.disc(side * 0.58, -0.52, 0.08, 0.08, SUN)
        p.line([(side * 0.04, -0.3), (side * 0.15, -0.7), (side * 0.32, -0.98)], 0.035, DARK)
        p.line([(side * 0.06, -0.1), (side * 0.75, -0.15)], 0.03, DARK)
    p.leaf((0, 0.72), (0, -0.52), 0.24, DARK)


def _car(p: Pen, rng: np.random.Generator) -> None:
    p.blob([(-1.02, 0.3), (-1.02, 0.0), (-0.85, -0.08), (-0.62, -0.1), (-0.4, -0.52), (0.25, -0.52), (0.55, -0.12),
            (0.95, -0.04), (1.05, 0.1), (1.04, 0.34), (0.9, 0.38), (-0.95, 0.38)], 1.0)  # fmt: skip
    p.poly([(-0.5, -0.1), (-0.33, -0.42), (-0.1, -0.42), (-0.1, -0.1)], GLASS)
    p.poly([(-0.02, -0.1), (-0.02, -0.42), (0.2, -0.42), (0.42, -0.1)], GLASS)
    p.line([(-0.42, -0.14), (-0.28, -0.38)], 0.04, (235, 245, 250))
    p.line([(-0.06, -0.1), (-0.06, 0.34)], 0.03, 0.5)
    p.line([(0.42, -0.04), (0.36, 0.34)], 0.03, 0.5)
    p.line([(-0.3, 0.03), (-0.15, 0.03)], 0.05, STEEL)
    p.line([(-1.0, 0.32), (1.02, 0.32)], 0.07, 0.5)
    p.disc(0.93, 0.08, 0.08, 0.07, SUN)
    p.disc(-0.97, 0.06, 0.05, 0.08, (190, 20, 20))
    for x in (-0.58, 0.6):
        p.disc(x, 0.36, 0.27, 0.27, 0.3)
        p.disc(x, 0.38, 0.24, 0.24, DARK)
        p.disc(x, 0.38, 0.14, 0.14, STEEL)
        for a in range(0, 360, 72):
            p.line([(x, 0.38), arc(x, 0.38, 0.13, 0.13, a, a + 1)[0]], 0.035, DARK)


def _chair(p: Pen, rng: np.random.Generator) -> None:
    for x in (-0.42, 0.42):
        p.line([(x, 0.3), (x * 1.05, 0.8)], 0.11, 0.6)
        p.line([(x, -0.98), (x, 0.15)], 0.14, 0.95)
    p.line([(-0.42, 0.6), (0.42, 0.6)], 0.06, 0.6)
    for y in (-0.86, -0.56, -0.26):
        p.line([(-0.46, y), (0.46, y)], 0.16, 1.1)
    p.poly([(-0.5, 0.0), (0.5, 0.0), (0.72, 0.3), (-0.72, 0.3)], 1.2)
    p.poly([(-0.36, 0.05), (0.36, 0.05), (0.5, 0.25), (-0.5, 0.25)], 0.9)
    p.box(-0.72, 0.3, 0.72, 0.42, 0.75)
    for x in (-0.63, 0.63):
        p.line([(x, 0.4), (x * 1.03, 0.99)], 0.14, 0.95)
    p.line([(-0.63, 0.7), (0.63, 0.7)], 0.07, 0.75)


def _clock(p: Pen, rng: np.random.Generator) -> None:
    for side in (-1.0, 1.0):
        p.line([(side * 0.4, 0.5), (side * 0.62, 0.97)], 0.13, STEEL)
        p.disc(side * 0.5, -0.68, 0.33, 0.26, 0.85)
        p.disc(side * 0.55, -0.76, 0.12, 0.06, 1.5)
    p.line([(0, -0.6), (0, -0.95)], 0.07, DARK)
    p.line([(-0.14, -0.95), (0.14, -0.95)], 0.1, DARK)
    p.disc(0, 0.1, 0.8, 0.8, 1.0)
    p.disc(0, 0.1, 0.6, 0.6, (250, 248, 240))
    for hour in range(12):
        x, y = np.cos(np.pi * hour / 6), np.sin(np.pi * hour / 6)
        inner = 0.42 if hour % 3 == 0 else 0.48
        p.line([(x * inner, 0.1 + y * inner), (x * 0.55, 0.1 + y * 0.55)], 0.075 if hour % 3 == 0 else 0.04, DARK)
    for length, width in ((0.28, 0.09), (0.43, 0.06)):
        a = rng.uniform(0, 2 * np.pi)
        p.line([(0, 0.1), (length * np.cos(a), 0.1 + length * np.sin(a))], width, DARK)
    p.disc(0, 0.1, 0.07, 0.07, (200, 30, 30))


def _fish(p: Pen, rng: np.random.Generator) -> None:
    p.poly([(0.42, 0), (0.98, -0.52), (0.84, 0), (0.98, 0.52)], 0.75)
    p.poly([(-0.45, -0.3), (-0.1, -0.75), (0.4, -0.62), (0.3, -0.2)], 0.75)
    p.poly([(-0.2, 0.35), (0.12, 0.74), (0.28, 0.28)], 0.75)
    for y in (-0.3, 0.0, 0.3):
        p.line([(0.6, y * 0.4), (0.9, y * 1.3)], 0.03, 0.5)
    p.leaf((-1.0, 0), (0.62, 0), 1.02, 1.0)
    for row in range(4):
        for y in (-0.24, -0.08, 0.08, 0.24)[row > 1 : 4 - (row > 1)]:  # the body narrows towards the tail
            x = -0.22 + 0.17 * row + (0.08 if abs(y) > 0.1 else 0)
            p.line(arc(x, y, 0.08, 0.09, -80, 80), 0.03, 0.6)
    p.line(arc(-0.62, 0, 0.22, 0.36, -70, 70), 0.045, 0.5)
    p.poly([(-0.26, 0.06), (0.02, 0.22), (-0.1, 0.32)], 0.7)
    p.disc(-0.68, -0.12, 0.1, 0.1, (250, 250, 245))
    p.disc(-0.69, -0.12, 0.055, 0.055, DARK)
    p.line([(-0.96, 0.08), (-0.8, 0.12)], 0.04, DARK)


def _flower(p: Pen, rng: np.random.Generator) -> None:
    p.line([(0, -0.2), (0.04, 0.4), (-0.02, 0.99)], 0.1, LEAF)
    p.leaf((0.02, 0.85), (0.62, 0.35), 0.28, LEAF)
    p.leaf((0, 0.75), (-0.58, 0.45), 0.26, (78, 150, 60))
    petals, turn = int(rng.integers(7, 11)), rng.uniform(0, 60)
    for ring, (reach, shade) in enumerate(((0.66, 0.82), (0.6, 1.05))):
        for k in range(petals):
            a = np.radians(turn + 360 * (k + ring / 2) / petals)
            p.leaf((0, -0.34), (reach * np.cos(a), -0.34 + reach * np.sin(a)), 0.3, shade)
    p.disc(0, -0.34, 0.2, 0.2, (150, 92, 24))
    for k in range(14):
        r, a = 0.165 * np.sqrt((k + 0.5) / 14), 2.4 * k
        p.disc(r * np.cos(a), -0.34 + r * np.sin(a), 0.028, 0.028, SUN)


def _guitar(p: Pen, rng: np.random.Generator) -> None:
    right = [(0.14, -0.12), (0.36, -0.16), (0.44, 0.1), (0.3, 0.3), (0.56, 0.5), (0.56, 0.86), (0.28, 1.04)]
    ring = right + [(-x, y) for x, y in right[::-1]]
    p.blob([(x * 1.05, y * 1.04 - 0.02) for x, y in ring], 0.5)
    p.blob([(x * 0.96, y * 0.97 + 0.01) for x, y in ring], 1.0)
    p.disc(0, 0.26, 0.19, 0.17, CREAM)
    p.disc(0, 0.26, 0.15, 0.135, DARK)
    p.poly([(-0.14, -0.98), (0.14, -0.98), (0.1, -0.7), (-0.1, -0.7)], BARK)
    p.box(-0.075, -0.74, 0.075, 0.14, (66, 42, 28))
    for k in range(9):
        p.line([(-0.075, -0.7 + 0.085 * k), (0.075, -0.7 + 0.085 * k)], 0.02, STEEL)
    for y in (-0.92, -0.84, -0.76):
        p.disc(-0.16, y, 0.045, 0.03, STEEL)
        p.disc(0.16, y, 0.045, 0.03, STEEL)
    p.box(-0.22, 0.64, 0.22, 0.73, DARK)
    for x in (-0.045, 0.0, 0.045):
        p.line([(x, -0.95), (x, 0.68)], 0.012, (230, 225, 205))


def _house(p: Pen, rng: np.random.Generator) -> None:
    roof = ((150, 58, 42), (72, 78, 92), (112, 74, 50))[rng.integers(3)]
    p.box(0.36, -0.9, 0.58, -0.3, (140, 70, 55))
    p.box(0.32, -0.95, 0.62, -0.84, (95, 50, 42))
    p.box(-0.76, -0.12, 0.76, 0.92, 1.0)
    p.poly([(-0.98, -0.05), (-0.3, -0.78), (0.3, -0.78), (0.98, -0.05)], roof)
    for y in (-0.62, -0.46, -0.3, -0.14):
        w = 0.3 + (y + 0.78) * 0.93
        p.line([(-w, y), (w, y)], 0.03, DARK)
    p.line([(-0.96, -0.03), (0.96, -0.03)], 0.07, CREAM)
    for x in (-0.46, 0.46):
        p.box(x - 0.2, 0.12, x + 0.2, 0.54, CREAM)
        p.box(x - 0.15, 0.17, x + 0.15, 0.49, GLASS)
        p.line([(x, 0.15), (x, 0.5)], 0.045, CREAM)
        p.line([(x - 0.18, 0.33), (x + 0.18, 0.33)], 0.045, CREAM)
    p.box(-0.18, 0.3, 0.18, 0.92, CREAM)
    p.box(-0.13, 0.35, 0.13, 0.92, BARK)
    p.disc(0.07, 0.64, 0.035, 0.035, SUN)
    p.box(-0.84, 0.88, 0.84, 0.97, (120, 118, 112))


def _lamp(p: Pen, rng: np.random.Generator) -> None:
    p.disc(0, 0.86, 0.44, 0.13, 0.7)
    p.disc(0, 0.82, 0.4, 0.11, 1.0)
    p.line([(0, -0.1), (0, 0.8)], 0.1, STEEL)
    p.blob([(-0.05, 0.05), (0.05, 0.05), (0.24, 0.45), (0.12, 0.78), (-0.12, 0.78), (-0.24, 0.45)], 0.9)
    p.poly([(-0.34, -0.97), (0.34, -0.97), (0.74, -0.06), (-0.74, -0.06)], 1.1)
    for k in range(-3, 4):
        p.line([(k * 0.1, -0.95), (k * 0.215, -0.08)], 0.035, 0.72)
    p.disc(0, -0.06, 0.74, 0.12, (255, 240, 190))
    p.disc(0, -0.05, 0.22, 0.1, (255, 252, 235))
    p.disc(0, -0.97, 0.34, 0.05, 0.6)
    p.line([(0.36, 0.0), (0.36, 0.36)], 0.025, STEEL)
    p.disc(0.36, 0.38, 0.05, 0.05, SUN)


def _mug(p: Pen, rng: np.random.Generator) -> None:
    p.line(arc(0.48, 0.1, 0.38, 0.4, -100, 100), 0.17, 0.85)
    p.box(-0.78, -0.62, 0.5, 0.72, 1.0)
    p.disc(-0.14, 0.72, 0.64, 0.18, 1.0)
    p.disc(-0.14, -0.62, 0.64, 0.2, 1.35)
    p.disc(-0.14, -0.6, 0.54, 0.145, 0.45)
    p.disc(-0.14, -0.56, 0.47, 0.1, (70, 40, 22))
    for y in (-0.28, 0.62):
        p.line(arc(-0.14, y, 0.64, 0.18, 2, 178), 0.06, 0.6)
    heart = [
        (-0.14, 0.62), (-0.44, 0.3), (-0.38, 0.1), (-0.2, 0.08),
        (-0.14, 0.2), (-0.08, 0.08), (0.1, 0.1), (0.16, 0.3),
    ]  # fmt: skip
    p.blob(heart, CREAM)


def _star(p: Pen, rng: np.random.Generator) -> None:
    outer = [(0.98 * np.sin(np.pi * 2 * k / 5), 0.05 - 0.98 * np.cos(np.pi * 2 * k / 5)) for k in range(5)]
    inner = [(0.42 * np.sin(np.pi * (2 * k + 1) / 5), 0.05 - 0.42 * np.cos(np.pi * (2 * k + 1) / 5)) for k in range(5)]
    for k in range(5):
        p.poly([(0, 0.05), inner[k - 1], outer[k]], 1.2)
        p.poly([(0, 0.05), outer[k], inner[k]], 0.72)


def _tree(p: Pen, rng: np.random.Generator) -> None:
    p.poly([(-0.1, 0.1), (0.1, 0.1), (0.12, 0.8), (0.26, 0.99), (-0.26, 0.99), (-0.12, 0.8)], BARK)
    p.line([(0, 0.45), (0.34, 0.12)], 0.08, BARK)
    p.line([(0, 0.4), (-0.34, 0.1)], 0.08, BARK)
    for x in (-0.05, 0.04):
        p.line([(x, 0.3), (x * 1.5, 0.92)], 0.02, (60, 38, 22))
    crown = ((0, -0.3, 0.5), (-0.42, -0.05, 0.36), (0.42, -0.05, 0.36), (-0.34, -0.45, 0.38), (0.34, -0.45, 0.38),
             (0, -0.64, 0.34), (0, 0.06, 0.3))  # fmt: skip
    for x, y, r in crown:
        p.disc(x, y, r, r * 0.92, 0.72)
    for _ in range(70):
        x, y, r = crown[rng.integers(len(crown))]
        a, d = rng.uniform(0, 2 * np.pi), r * np.sqrt(rng.uniform())
        cx, cy, tilt = x + d * np.cos(a), y + d * np.sin(a) * 0.92, rng.uniform(0, np.pi)
        tip = (cx + 0.2 * np.cos(tilt), cy + 0.2 * np.sin(tilt))
        p.leaf((cx, cy), tip, 0.12, (0.5, 0.9, 1.1, 1.3)[rng.integers(4)])


def _umbrella(p: Pen, rng: np.random.Generator) -> None:
    p.line([(0, -0.98), (0, 0.75), *arc(0.16, 0.78, 0.16, 0.18, 180, 0)], 0.08, BARK)
    edges, t = np.radians(np.linspace(-90, 90, 7)), np.linspace(0, np.pi / 2, 12)
    for k, (left, right) in enumerate(pairwise(edges)):
        down = 0.12 - 0.92 * np.cos(t)
        one, two = np.stack([np.sin(left) * np.sin(t), down], 1), np.stack([np.sin(right) * np.sin(t), down], 1)
        middle, half = (np.sin(left) + np.sin(right)) / 2, (np.sin(right) - np.sin(left)) / 2
        hem = np.array(arc(middle, 0.12, half, 0.1, 180, 360))  # scalloped: the cloth is taken in between the ribs
        p.poly(np.concatenate([one, hem, two[::-1]]), 1.1 if k % 2 else 0.78)
        p.line([(x, y) for x, y in two], 0.025, 0.45)


@dataclass(frozen=True)
class Kind:
    """A kind of object: the function that draws it, and the range of its rotation in degrees either way."""

    draw: Callable[[Pen, np.random.Generator], None]
    tilt: float


KINDS: dict[str, Kind] = {
    "apple": Kind(_apple, 20), "ball": Kind(_ball, 180), "boat": Kind(_boat, 10), "book": Kind(_book, 25),
    "bottle": Kind(_bottle, 15), "butterfly": Kind(_butterfly, 50), "car": Kind(_car, 10), "chair": Kind(_chair, 8),
    "clock": Kind(_clock, 10), "fish": Kind(_fish, 25), "flower": Kind(_flower, 15), "guitar": Kind(_guitar, 50),
    "house": Kind(_house, 4), "lamp": Kind(_lamp, 6), "mug": Kind(_mug, 10), "star": Kind(_star, 36),
    "tree": Kind(_tree, 5), "umbrella": Kind(_umbrella, 25),
}  # fmt: skip
