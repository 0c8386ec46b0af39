"""The grounds of the synthetic scenes: seven textures and the horizon between two of them.

Each texture is (H, W, 3) float32 in 0..255; `s` is the size of its details, 1 at 256 pixels.
"""

import numpy as np

from .drawings import KINDS
from .objects import smooth_noise

GROUNDS = ("grass", "sand", "water", "snow", "floor", "wall", "sky")
CLASSES = (*KINDS, *GROUNDS)  # mask value = index

_Rng = np.random.Generator
_Shape = tuple[int, int]


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], t: np.ndarray) -> np.ndarray:
    """Mix colours from `low` at t = 0 to `high` at t = 1; (H, W) -> (H, W, 3)."""
    a, b = np.array(low, np.float32), np.array(high, np.float32)
    return a + (b - a) * np.clip(t, 0, 1)[..., None].astype(np.float32)


def _grass(rng: _Rng, shape: _Shape, s: float) -> np.ndarray:
    blades = smooth_noise(rng, shape, (7 * s, 1.6 * s)) * 0.6 + smooth_noise(rng, shape, (4 * s, 1.2 * s)) * 0.4
    tone = smooth_noise(rng, shape, (50 * s, 50 * s)) - 0.5
    image = _mix((22, 58, 14), (128, 182, 62), (blades - 0.5) * 1.7 + 0.45 + 0.35 * tone)
    specks = smooth_noise(rng, shape, (3 * s, 3 * s)) > 0.985
    image[specks] = (232, 226, 170)
    return image


def _sand(rng: _Rng, shape: _Shape, s: float) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    warp = smooth_noise(rng, shape, (40 * s, 60 * s)) * 9
    ripples = np.sin((y + x * rng.uniform(-0.3, 0.3)) / (rng.uniform(2.2, 3.5) * s) + warp)
    grain = rng.random(shape, dtype=np.float32) - 0.5
    return _mix((172, 134, 84), (244, 218, 164), 0.55 + 0.22 * ripples + 0.4 * grain)


def _water(rng: _Rng, shape: _Shape, s: float) -> np.ndarray:
    waves = smooth_noise(rng, shape, (3 * s, 22 * s)) * 0.5 + smooth_noise(rng, shape, (6 * s, 45 * s)) * 0.5
    image = _mix((12, 62, 98), (70, 160, 186), (waves - 0.5) * 2 + 0.5)
    glitter = smooth_noise(rng, shape, (2 * s, 9 * s)) + 0.5 * waves
    return image + np.clip((glitter - 1.02) * 5, 0, 1)[..., None] * (235 - image)


def _snow(rng: _Rng, shape: _Shape, s: float) -> np.ndarray:
    drifts = smooth_noise(rng, shape, (26 * s, 60 * s)) * 9 + smooth_noise(rng, shape, (7 * s, 9 * s)) * 3.2
    lit = np.diff(drifts, axis=0, append=drifts[-1:]) * s * 2.4 + np.diff(drifts, axis=1, append=drifts[:, -1:]) * s
    sparkle = (rng.random(shape, dtype=np.float32) > 0.97) * 0.5
    return _mix((128, 160, 214), (253, 253, 255), 0.72 + 0.45 * lit + sparkle)


def _floor(rng: _Rng, shape: _Shape, s: float) -> np.ndarray:
    width, length = rng.uniform(20, 30) * s, rng.uniform(100, 160) * s
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    row = (y // width).astype(int)
    starts = rng.uniform(0, length, row.max() + 1)
    column = ((x + starts[row]) // length).astype(int)
    tone = rng.random((row.max() + 1, column.max() + 1), dtype=np.float32)[row, column]
    grain = smooth_noise(rng, shape, (1.5 * s, 28 * s)) - 0.5
    image = _mix((104, 62, 32), (204, 146, 88), 0.2 + 0.6 * tone + 0.55 * grain)
    seam = (y % width < 1.6 * s) | ((x + starts[row]) % length < 1.6 * s)
    image[seam] *= 0.42
    return image


def _wall(rng: _Rng, shape: _Shape, s: float) -> np.ndarray:
    high, wide, joint = rng.uniform(13, 20) * s, rng.uniform(32, 44) * s, 2.2 * s
    low, light = [
        ((120, 48, 34), (190, 92, 66)),
        ((112, 108, 104), (176, 172, 164)),
        ((160, 128, 92), (222, 192, 148)),
    ][rng.integers(3)]
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    row = (y // high).astype(int)
    x = x + (row % 2) * wide / 2
    column = (x // wide).astype(int)
    tone = rng.random((row.max() + 1, column.max() + 1), dtype=np.float32)[row, column]
    image = _mix(low, light, 0.15 + 0.7 * tone + 0.5 * (smooth_noise(rng, shape, (2 * s, 3 * s)) - 0.5))
    image[(y % high > high - 1.2 * joint) | (x % wide > wide - 1.2 * joint)] *= 0.7  # shadow beside the mortar
    mortar = (y % high < joint) | (x % wide < joint)
    image[mortar] = (198, 192, 182)
    return image


def _sky(rng: _Rng, shape: _Shape, s: float, cloudy: bool) -> np.ndarray:
    fall = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None] + np.zeros(shape, np.float32)
    image = _mix((62, 122, 205), (176, 214, 242), fall)
    cells = ((44, 90), (20, 36), (9, 14), (4, 6))
    cloud = np.zeros(shape, np.float32)
    for (down, across), weight in zip(cells, (8, 4, 2, 1), strict=True):
        cloud += smooth_noise(rng, shape, (down * s, across * s)) * (weight / 15)
    cover = np.clip((cloud - (0.4 if cloudy else 0.66)) * (7 if cloudy else 5), 0, 1)
    lit = _mix((168, 174, 188), (255, 255, 255), cloud * 2.2 - 0.66)
    return image + cover[..., None] * (lit - image)


_DRAW = {"grass": _grass, "sand": _sand, "water": _water, "snow": _snow, "floor": _floor, "wall": _wall}


def _ground(name: str, rng: _Rng, shape: _Shape, s: float, cloudy: bool) -> np.ndarray:
    return _sky(rng, shape, s, cloudy) if name == "sky" else _DRAW[name](rng, shape, s)


def backdrop(rng: _Rng, size: int, cloudy: bool) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], float]:
    """Draw picture (S, S, 3) and mask (S, S) of the grounds; also return their names and the horizon (0 without)."""
    s, shape = size / 256, (size, size)
    if rng.random() < 0.5:
        name = GROUNDS[rng.integers(len(GROUNDS))]
        return _ground(name, rng, shape, s, cloudy), np.full(shape, CLASSES.index(name), np.uint8), (name,), 0.0
    top = ("sky", "sky", "wall")[rng.integers(3)]
    bottom = (
        ("grass", "sand", "water", "snow")[rng.integers(4)] if top == "sky" else ("floor", "grass")[rng.integers(2)]
    )
    level = float(rng.uniform(0.34, 0.58)) * size
    hills = 0.0 if bottom in ("water", "floor") else 0.05 * size
    line = level + hills * (smooth_noise(rng, (1, size), (1, 70 * s))[0] - 0.5)
    above = np.arange(size)[:, None] < line[None, :]
    image = np.where(above[..., None], _ground(top, rng, shape, s, cloudy), _ground(bottom, rng, shape, s, cloudy))
    mask = np.where(above, CLASSES.index(top), CLASSES.index(bottom)).astype(np.uint8)
    return image, mask, (top, bottom), level
