"""The Multi-Res Adapter: windows put together and the whole image as one map, at one depth of the backbone."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simzss.models.mask_head.layers import ChannelNorm, DepthwiseBlock

_KERNEL = 5  # cells: reaches two cells over the border of a window


class MultiResAdapter(nn.Module):
    """Features of one depth, coarse and fine, in the head's width.

    Windows went through the backbone apart, so that their features end at their borders: a depth-wise convolution over
    the restored map mends that. Then each place takes from the windows and from the whole image as a gate says: a
    softmax over the two scales, from both their features.

    Args:
        tapped: C, channels of the backbone.
        width: d, channels of the head.
        views: see `simzss.models.mask_head.views.VIEWS`.
        gate: whether a gate mixes the scales; otherwise each counts half.
        restore: whether a convolution reaches over the borders of windows.
    """

    def __init__(self, tapped: int, width: int, views: str, gate: bool, restore: bool) -> None:
        super().__init__()
        self.project = nn.Sequential(ChannelNorm(tapped), nn.Conv2d(tapped, width, 1))
        self.coarse = DepthwiseBlock(width, _KERNEL) if views != "windows" else None
        self.fine = DepthwiseBlock(width, _KERNEL) if views != "global" and restore else None
        self.gate = nn.Conv2d(2 * width, 2, 1) if views == "both" and gate else None
        self.views = views

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the levels, coarse (B, C, h, w) before fine (B, C, h', w') -> the same in d channels.

        With one of the `views` there is one level. With both the fine one is the mixture.
        """
        found = [self.project(level.float()) for level in levels]
        if self.coarse is not None:
            found[0] = self.coarse(found[0])
        if self.fine is not None:
            found[-1] = self.fine(found[-1])
        if self.views == "both":
            found[1] = self._mix(*found)
        return found

    def _mix(self, coarse: Tensor, fine: Tensor) -> Tensor:
        around = F.interpolate(coarse, fine.shape[2:], mode="bilinear")
        if self.gate is None:
            return (fine + around) / 2
        share = self.gate(torch.cat([fine, around], dim=1)).softmax(dim=1)  # (B, 2, h', w')
        return share[:, :1] * fine + share[:, 1:] * around
