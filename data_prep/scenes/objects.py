"""Render objects of the synthetic scenes: a drawing, a colour, a material, the light.

An object is drawn as flat parts into an index image at `OVERSAMPLE` times its final size and reduced to smooth
edges; its material's texture and the light are added at the final size. `render_object` is the entry point.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from .drawings import KINDS
from .pen import REACH, Pen, Point

OVERSAMPLE = 2

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 38, 38),
    "yellow": (240, 208, 45),
    "green": (45, 150, 55),
    "blue": (40, 85, 205),
    "purple": (130, 55, 170),
    "pink": (242, 140, 182),
    "brown": (122, 76, 40),
    "white": (238, 238, 236),
    "black": (46, 46, 50),
}
MATERIALS = ("plain", "wooden", "metallic", "transparent", "striped", "dotted", "woolly")


class Patch(NamedTuple):
    """A rendered object: what is composed onto a scene."""

    colour: np.ndarray  # (S, S, 3) float32, 0..255, already multiplied by `opacity`
    opacity: np.ndarray  # (S, S) float32, 0..1: how much of the ground is hidden
    cover: np.ndarray  # (S, S) float32, 0..1: how much of each pixel is the object; it is labelled from 0.5 on


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: Point) -> np.ndarray:
    """Draw random values 0..1 that change over about `cell` = (down, across) pixels; (H, W) float32."""
    height, width = shape
    coarse = rng.random((int(height / cell[0]) + 2, int(width / cell[1]) + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _material(
    name: str, u: np.ndarray, v: np.ndarray, dark: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """Return the gain (S, S), veil (S, S) and colour of the veil of a material at object coordinates `u`, `v` (S, S).

    The gain multiplies the object's colour; the veil (0..1) mixes it with the veil's colour.
    """
    none, side = np.zeros_like(u), u.shape[0]
    if name == "wooden":
        rings = v * 9 + 3.5 * smooth_noise(rng, u.shape, (side / 5, side / 5)) + 0.6 * np.sin(2.2 * u + 1)
        grain = smooth_noise(rng, u.shape, (2, 9))
        return 0.72 + 0.42 * np.abs(np.sin(np.pi * rings)) ** 0.7 + 0.22 * (grain - 0.5), none + 0.3, (158, 104, 52)
    if name == "metallic":
        phase = rng.uniform(-0.4, 0.4)
        wave = np.cos(3.6 * (u * 0.8 + v * 0.6 + phase))
        brushed = smooth_noise(rng, u.shape, (1, side / 3)) - 0.5
        return 0.62 + 0.3 * wave + 0.25 * brushed, 0.85 * np.clip(wave, 0, 1) ** 6 + 0.08, (250, 252, 255)
    if name == "transparent":
        streak = np.exp(-(((u + v + 0.55) / 0.13) ** 2)) + 0.6 * np.exp(-(((u + v + 0.2) / 0.06) ** 2))
        return 1.1 + none, np.clip(0.1 + 0.75 * streak, 0, 1), (245, 250, 255)
    second = (235, 232, 224) if dark else (70, 72, 84)
    if name == "striped":
        a, f = rng.uniform(-0.5, 0.5), rng.uniform(2.2, 3.2)
        wave = np.sin(2 * np.pi * f * (u * float(np.cos(a)) + v * float(np.sin(a))))
        return 1 + none, 0.9 * np.clip(0.5 + wave * 4, 0, 1), second
    if name == "dotted":
        f = rng.uniform(2.4, 3.2)
        row = np.floor(v * f)
        distance = np.hypot((u * f + 0.5 * row) % 1 - 0.5, (v * f) % 1 - 0.5)
        return 1 + none, 0.92 * np.clip((0.3 - distance) * 10 + 0.5, 0, 1), second
    if name == "woolly":
        f = 7.0  # knitted: columns of V-shaped stitches
        stitch = np.abs(np.sin(np.pi * (v * f + 1.1 * np.abs((u * f) % 1 - 0.5) * 2)))
        seam = np.abs((u * f) % 1 - 0.5) * 2
        fuzz = smooth_noise(rng, u.shape, (1.5, 1.5)) - 0.5
        return 0.6 + 0.4 * stitch - 0.28 * seam**4 + 0.4 * fuzz, none + 0.1, (235, 230, 220)
    return 0.96 + 0.1 * smooth_noise(rng, u.shape, (6, 6)), none, second


def _shade(cover: np.ndarray, light: Point, strength: float) -> np.ndarray:
    """Return light and shadow on the object, about 1; (S, S) float32: rounded edges, fall-off away from the light."""
    side = cover.shape[0]
    image = Image.fromarray((cover * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(side * 0.045))
    height = np.asarray(image, np.float32) / 255
    down, across = np.gradient(height)
    relief = -(across * light[0] + down * light[1]) * side * 0.085
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    return 1 + strength * (relief - 0.22 * (axis[None, :] * light[0] + axis[:, None] * light[1]))


def render_object(kind: str, colour: str, material: str, side: int, light: Point, rng: np.random.Generator) -> Patch:
    """Draw one object in a patch about 1.36 times `side` pixels wide, turned and stretched at random.

    `light` is the direction in which the light travels (x right, y down); names are keys of `KINDS`, `COLOURS` and
    members of `MATERIALS`.
    """
    spec = KINDS[kind]
    size = int(np.ceil(side * REACH))
    angle = float(np.radians(rng.uniform(-spec.tilt, spec.tilt)))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    pen = Pen(size * OVERSAMPLE, angle, (mirror * rng.uniform(0.86, 1.0), rng.uniform(0.88, 1.0)))
    spec.draw(pen, rng)

    base = np.clip(np.array(COLOURS[colour], float) + rng.uniform(-14, 14, 3), 0, 255)
    own = [not isinstance(fill, tuple) for fill in pen.fills]
    tints = [np.clip(base * np.array(f), 0, 255) if o else np.array(f) for f, o in zip(pen.fills, own, strict=True)]
    columns = [[0, *(round(float(t[c])) for t in tints)] for c in range(3)]
    columns += [[0] + [255] * len(own), [0] + [255 * o for o in own]]
    columns += [[0] + [0 if isinstance(fill, tuple) else min(255, round(fill * 160)) for fill in pen.fills]]
    layers = [pen.image.point(c + [0] * (256 - len(c))).reduce(OVERSAMPLE) for c in columns]
    planes = [np.asarray(layer, np.float32) for layer in layers]
    flat, (cover, body, part) = np.stack(planes[:3], 2), (plane / 255 for plane in planes[3:])

    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 * REACH - REACH
    across, down = np.meshgrid(axis, axis)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    u, v = across * cos + down * sin, down * cos - across * sin
    gain, veil, veil_colour = _material(material, u, v, base.mean() < 185, rng)
    veil = veil * body
    flat = flat * (1 + body * (gain - 1))[..., None] * (1 - veil)[..., None]
    flat += (veil * part * (255 / 160))[..., None] * np.array(veil_colour, np.float32)  # parts keep their brightness
    flat *= _shade(cover, light, 1.25 if material in ("metallic", "transparent") else 0.9)[..., None]
    opacity = 1 - 0.5 * body * (1 - veil) if material == "transparent" else np.ones_like(cover)
    colour_out = np.clip(flat, 0, 255 * cover[..., None]) * opacity[..., None]
    return Patch(colour_out.astype(np.float32), (cover * opacity).astype(np.float32), cover)
