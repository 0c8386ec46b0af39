"""Features in fewer bits: bfloat16 by rounding, int8 with a scale for each patch."""

import torch
from torch import Tensor

from simzss.models.features import ImageFeatures

LEVELS = 127
"""Of int8 on either side of zero: -128 is not used, so that the scale is symmetric."""


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise vectors symmetrically: `values` equals `int8 * scale` to half a scale, amax / 254.

    A vector of zeros stays one; in one that is not finite the scale is not finite either, so that it shows.

    Args:
        values: (…, D).

    Returns:
        int8 (…, D) and the float32 scale (…).
    """
    values = values.float()
    scale = values.abs().amax(dim=-1) / LEVELS
    levels = values / torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(-1)
    return levels.round().clamp(-LEVELS, LEVELS).to(torch.int8), scale


def dequantise(levels: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Invert `quantise` up to rounding: int8 (…, D) and scale (…) to (…, D)."""
    return (levels.to(torch.float32) * scale.unsqueeze(-1)).to(dtype)


def pack(features: ImageFeatures, storage: str) -> dict[str, Tensor]:
    """Convert features to their stored form: `cls` (B, D), `patches` (B, N, D), for `int8` the `scale` (B, N)."""
    if storage == "int8":
        levels, scale = quantise(features.patches)
        return {"cls": features.cls.to(torch.bfloat16), "patches": levels, "scale": scale}
    dtype = torch.float32 if storage == "float32" else torch.bfloat16
    return {"cls": features.cls.to(dtype), "patches": features.patches.to(dtype)}


def bytes_per_image(storage: str, views: int, patches: int, width: int) -> int:
    """Return the size of one image's features as `pack` stores them."""
    per_value = {"bfloat16": (2, 2), "int8": (2, 1), "float32": (4, 4)}
    cls, patch = (size * width for size in per_value[storage])
    return views * (cls + patches * (patch + (4 if storage == "int8" else 0)))
