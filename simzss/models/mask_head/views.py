"""What the frozen backbone sees of an image in two resolutions, in one forward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.models.backbone.base import Backbone
from simzss.models.mask_head.slicing import restore, slice_windows

VIEWS = ("both", "global", "windows")
"""Windows and the whole image, or one of them alone."""


@dataclass
class Level:
    """Features of B images at one resolution: `taps`, (B, C, h, w) at several depths of the backbone, and `dense`
    (B, D, h, w), unit vectors in the space of the text."""  # fmt: skip

    taps: list[Tensor]
    dense: Tensor


def views_per_image(height: int, width: int, window: int, views: str) -> int:
    """How many of `views_of` an image of whole windows has."""
    return (views != "windows") + (height * width // window**2 if views != "global" else 0)


def views_of(images: Tensor, window: int, views: str) -> Tensor:
    """All that the backbone sees of images, as one batch.

    Args:
        images: (B, 3, R * window, Q * window), uint8 in 0..255 or float in 0..1.
        window: side of a window, and of the whole image made small.
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
def look(
    backbone: Backbone,
    finish: Callable[[Tensor], Tensor],
    images: Tensor,
    window: int,
    depths: Sequence[int],
    views: str,
) -> list[Level]:
    """Features of whole images and of their windows by one batched forward of the backbone.

    Args:
        backbone: frozen.
        finish: makes unit patches (V, N, D) of its patches (V, N, C), see `FeatureNorm.patches`.
        images: see `views_of`.
        window: see `views_of`.
        depths: after how many blocks features are tapped; 0 for the stem.
        views: see `views_of`.

    Returns:
        The whole image, coarse, and the windows put together, fine; with one of the views the one level.
    """
    rows, columns = images.shape[-2] // window, images.shape[-1] // window
    taps, patches, grid = backbone.taps(views_of(images, window, views), depths)
    dense = finish(patches).mT.unflatten(2, grid)
    whole = 0 if views == "windows" else len(images)
    levels = []
    if whole:
        levels.append(Level([tap[:whole] for tap in taps], dense[:whole]))
    if views != "global":
        fine = [restore(tap[whole:], rows, columns) for tap in taps]
        levels.append(Level(fine, restore(dense[whole:], rows, columns)))
    return levels
