"""Compose a synthetic scene: choose objects, arrange them on a ground, draw them with light and shadow."""

import itertools
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from .drawings import KINDS
from .grounds import CLASSES, backdrop
from .objects import COLOURS, MATERIALS, Patch, render_object, smooth_noise

MIN_VISIBLE = 0.35  # of an object's area; below, the picture is arranged anew

_Rng = np.random.Generator


class Thing(NamedTuple):
    """An object in a scene; lengths in pixels."""

    kind: str
    colour: str
    material: str
    x: float  # centre
    y: float
    side: float


class Scene(NamedTuple):
    """A rendered scene."""

    image: np.ndarray  # (H, W, 3) uint8
    mask: np.ndarray  # (H, W) uint8, indices into CLASSES
    things: list[Thing]
    occlusions: set[tuple[int, int]]  # (i, j): things[i] visibly covers part of things[j]
    grounds: tuple[str, ...]  # one ground, or what is above the horizon and what is below it
    cloudy: bool


def _choose(rng: _Rng, size: int) -> list[tuple[str, str, str, int]]:
    """Choose kinds, colours, materials and sides in pixels of one to four objects; a kind may come twice."""
    count = int(rng.choice([1, 2, 3, 4], p=[0.2, 0.35, 0.3, 0.15]))
    kinds = [str(k) for k in rng.choice(list(KINDS), size=count, replace=False)]
    twin = count > 1 and rng.random() < 0.3
    chosen: list[tuple[str, str, str, int]] = []
    for i, kind in enumerate(kinds):
        colour, material = str(rng.choice(list(COLOURS))), str(rng.choice(MATERIALS))
        low, high = (0.45, 0.65) if count <= 2 else (0.36, 0.54)
        if twin and i == 1:
            kind, material = kinds[0], chosen[0][2]
            colour = chosen[0][1] if rng.random() < 0.6 else colour
        chosen.append((kind, colour, material, int(rng.uniform(low, high) * size)))
    return chosen


def _overlay(n: int, x: float, y: float, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the window of a patch of `n` pixels centred on (x, y) in the picture, and the part of the patch in it."""
    windows = []
    for start in (round(y - n / 2), round(x - n / 2)):
        low, high = max(start, 0), min(start + n, size)
        windows.append((slice(low, max(high, low)), slice(low - start, max(high, low) - start)))
    return (windows[0][0], windows[1][0]), (windows[0][1], windows[1][1])


def _arrange(
    rng: _Rng, sides: list[int], patches: list[Patch], horizon: float, size: int
) -> tuple[list[tuple[float, float]], list[int], np.ndarray, set[tuple[int, int]], np.ndarray]:
    """Try one arrangement: centres, drawing order, visible share of each, occlusions, owner of each pixel (or -1)."""
    centres = []
    for side in sides:
        low = max(0.46 * side, horizon + 0.08 * size - 0.3 * side)  # it stands below the horizon
        centres.append((rng.uniform(0.46 * side, size - 0.46 * side), rng.uniform(low, size - 0.46 * side)))
    order = sorted(range(len(sides)), key=lambda i: centres[i][1] + sides[i] / 2)  # what stands lower is nearer
    owner = np.full((size, size), -1, np.int8)
    occlusions: set[tuple[int, int]] = set()
    areas = np.array([max(1, int((patch.cover >= 0.5).sum())) for patch in patches])
    for i in order:
        there, here = _overlay(patches[i].cover.shape[0], *centres[i], size)
        window, solid = owner[there], patches[i].cover[here] >= 0.5
        hidden = np.bincount(window[solid & (window >= 0)], minlength=len(sides))
        occlusions |= {(i, int(j)) for j in np.flatnonzero(hidden > 0.05 * areas)}
        window[solid] = i
    shown = np.bincount(owner[owner >= 0], minlength=len(sides)) / areas
    return centres, order, shown, occlusions, owner


def _compose(image: np.ndarray, patch: Patch, x: float, y: float, light: tuple[float, float], side: int) -> None:
    """Draw the patch and its shadow into the picture, in place."""
    n, size = patch.cover.shape[0], image.shape[0]
    blurred = Image.fromarray((patch.cover * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.035 * side))
    there, here = _overlay(n, x + 0.1 * side * light[0], y + 0.1 * side * light[1], size)
    image[there] *= 1 - 0.5 / 255 * np.asarray(blurred, np.float32)[here][..., None] * patch.opacity.max()
    there, here = _overlay(n, x, y, size)
    image[there] *= 1 - patch.opacity[here][..., None]
    image[there] += patch.colour[here]


def render_scene(rng: np.random.Generator, size: int) -> Scene:
    """Render a scene of `size` x `size` pixels; every object is visible to at least `MIN_VISIBLE` of its area."""
    angle = np.radians(rng.uniform(25, 155))
    light = (float(np.cos(angle)), float(np.sin(angle)))  # it travels down, from the left or the right
    cloudy = bool(rng.random() < 0.5)
    image, mask, grounds, horizon = backdrop(rng, size, cloudy)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    slope = axis[None, :] * light[0] + axis[:, None] * light[1]
    patchy = smooth_noise(rng, (size, size), (size / 3, size / 3)) - 0.5
    image = image * (1 - 0.14 * slope + 0.3 * patchy)[..., None]

    chosen = _choose(rng, size)
    patches = [render_object(k, c, m, side, light, rng) for k, c, m, side in chosen]
    for attempt in itertools.count(1):
        sides = [c[3] for c in chosen]
        centres, order, shown, occlusions, owner = _arrange(rng, sides, patches, horizon, size)
        if shown.min() >= MIN_VISIBLE:
            break
        if attempt % 20 == 0 and len(chosen) > 1:  # too crowded: go on without the one that was covered most
            worst = int(shown.argmin())
            del chosen[worst], patches[worst]
    for i in order:
        _compose(image, patches[i], *centres[i], light, chosen[i][3])
        mask[owner == i] = CLASSES.index(chosen[i][0])
    image = image * rng.uniform(0.88, 1.08) + 3 * rng.standard_normal((size, size, 1), dtype=np.float32)
    things = [Thing(k, c, m, x, y, side) for (k, c, m, side), (x, y) in zip(chosen, centres, strict=True)]
    return Scene(np.clip(image, 0, 255).astype(np.uint8), mask, things, occlusions, grounds, cloudy)
