"""Images in two resolutions: windows side by side and the whole image, through the frozen backbone in one forward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.errors import InputError
from simzss.models.backbone.base import Backbone


@dataclass
class FeatureLevel:
    """Features of B images at one resolution.

    Attributes:
        intermediates: (B, C, h, w) at several depths of the backbone.
        dense: (B, D, h, w), unit vectors in the space of the text.
    """

    intermediates: list[Tensor]
    dense: Tensor


def slice_windows(images: Tensor, window: int) -> Tensor:
    """Cut images into windows without overlap, row by row.

    Args:
        images: (B, C, R * window, Q * window).
        window: side in pixels.

    Returns:
        (B * R * Q, C, window, window), those of one image one after another.

    Raises:
        InputError: sides that are no multiples of the window.
    """
    height, width = images.shape[-2:]
    if not height or not width or height % window or width % window:
        raise InputError(f"an image of {height} x {width} pixels is not made of windows of {window} x {window}")
    parts = images.unflatten(3, (-1, window)).unflatten(2, (-1, window))  # (B, C, R, window, Q, window)
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def merge_windows(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Invert `slice_windows`, for maps of any number of cells a window.

    Args:
        maps: (B * rows * columns, C, h, w).
        rows: R, windows below one another.
        columns: Q, windows beside one another.

    Returns:
        (B, C, R * h, Q * w).
    """
    parts = maps.unflatten(0, (-1, rows, columns))  # (B, R, Q, C, h, w)
    return parts.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def views_per_image(height: int, width: int, window: int, views: str) -> int:
    """Return the number of views of an image that consists of whole windows."""
    return (views != "windows") + (height * width // window**2 if views != "global" else 0)


def make_views(images: Tensor, window: int, views: str) -> Tensor:
    """Stack the views of images as one batch.

    Args:
        images: (B, 3, R * window, Q * window), uint8 in 0..255 or float in 0..1.
        window: side of a window, and of the downsized whole image.
        views: `both`, `global` or `windows`.

    Returns:
        (V, 3, window, window) of the images' dtype: first B whole images, then B * R * Q windows, as far as asked for.
    """
    parts = []
    if views != "windows":
        small = F.interpolate(images.float(), (window, window), mode="bilinear", antialias=True)
        parts.append(small.round().clamp(0, 255).to(images.dtype) if images.dtype == torch.uint8 else small)
    if views != "global":
        parts.append(slice_windows(images, window))
    return torch.cat(parts)


@torch.no_grad()
def encode_views(
    backbone: Backbone,
    finish: Callable[[Tensor], Tensor],
    images: Tensor,
    window: int,
    depths: Sequence[int],
    views: str,
) -> list[FeatureLevel]:
    """Encode whole images and their windows by one forward of the backbone.

    Args:
        backbone: frozen.
        finish: makes unit patches (V, N, D) of the backbone's patches (V, N, C), see `FeatureNorm.patches`.
        images: see `make_views`.
        window: see `make_views`.
        depths: numbers of blocks after which intermediate features are taken; 0 for the stem.
        views: see `make_views`.

    Returns:
        The whole image, coarse, and the merged windows, fine; with one of the views that level alone.
    """
    rows, columns = images.shape[-2] // window, images.shape[-1] // window
    intermediates, patches, grid = backbone.intermediates(make_views(images, window, views), depths)
    dense = finish(patches).mT.unflatten(2, grid)
    whole = 0 if views == "windows" else len(images)
    levels = []
    if whole:
        levels.append(FeatureLevel([maps[:whole] for maps in intermediates], dense[:whole]))
    if views != "global":
        fine = [merge_windows(maps[whole:], rows, columns) for maps in intermediates]
        levels.append(FeatureLevel(fine, merge_windows(dense[whole:], rows, columns)))
    return levels
