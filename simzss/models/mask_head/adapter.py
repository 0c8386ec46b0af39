"""The Multi-Res Adapter of MROVSeg: windows and the whole image as one map, at one depth of the backbone."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simzss.models.mask_head.layers import DepthwiseBlock, LayerNorm2d

_KERNEL = 5  # cells: reaches two cells across the border of a window


class FeatureAdapter(nn.Module):
    """Intermediate features of one depth, coarse and fine, in the head's width.

    Each window went through the backbone by itself, so that its features end at its borders: a depth-wise convolution
    over the merged map mends that. A gate, a softmax over the two scales, then weighs windows and whole image at each
    position.

    Args:
        channels: C of the backbone.
        width: d of the head.
        views: see `MaskHeadSettings`.
        gate: mix the scales by a gate; otherwise each counts half.
        restore: let a convolution reach across the borders of windows.
    """

    def __init__(self, channels: int, width: int, views: str, gate: bool, restore: bool) -> None:
        super().__init__()
        self.project = nn.Sequential(LayerNorm2d(channels), nn.Conv2d(channels, width, 1))
        self.coarse = DepthwiseBlock(width, _KERNEL) if views != "windows" else None
        self.fine = DepthwiseBlock(width, _KERNEL) if views != "global" and restore else None
        self.gate = nn.Conv2d(2 * width, 2, 1) if views == "both" and gate else None
        self.views = views

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Adapt the maps of the levels, coarse (B, C, h, w) before fine (B, C, h', w'), to d channels.

        With one of the `views` there is one level. With both, the fine one becomes the mixture.
        """
        adapted = [self.project(level.float()) for level in levels]
        if self.coarse is not None:
            adapted[0] = self.coarse(adapted[0])
        if self.fine is not None:
            adapted[-1] = self.fine(adapted[-1])
        if self.views == "both":
            adapted[1] = self._mix(*adapted)
        return adapted

    def _mix(self, coarse: Tensor, fine: Tensor) -> Tensor:
        context = F.interpolate(coarse, fine.shape[2:], mode="bilinear")
        if self.gate is None:
            return (fine + context) / 2
        weights = self.gate(torch.cat([fine, context], dim=1)).softmax(dim=1)  # (B, 2, h', w')
        return weights[:, :1] * fine + weights[:, 1:] * context
