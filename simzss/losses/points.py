"""Points at which masks are compared in place of all pixels (PointRend, Kirillov et al. 2020).

Coordinates are across and down, 0..1 over the whole map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.losses.settings import MaskLossSettings


def point_sample(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps at points, bilinear between the centres of cells, the border cells extended to the rim.

    Args:
        maps: (N, H, W), or (N, Q, H, W) where Q maps have the same points.
        points: (N, P, 2).

    Returns:
        (N, P), or (N, Q, P).
    """
    several = maps if maps.ndim == 4 else maps[:, None]
    sampled = F.grid_sample(several, 2 * points[:, None] - 1, padding_mode="border", align_corners=False)[:, :, 0]
    return sampled if maps.ndim == 4 else sampled[:, 0]


def sample_labels(labels: Tensor, images: Tensor, points: Tensor) -> Tensor:
    """Return the labels of the pixels that points lie in.

    Args:
        labels: (B, H, W).
        images: (N) index of the image of each set of points.
        points: (N, P, 2).

    Returns:
        (N, P).
    """
    height, width = labels.shape[1:]
    across, down = points.unbind(dim=2)
    across, down = (across * width).long().clamp(max=width - 1), (down * height).long().clamp(max=height - 1)
    return labels[images[:, None], down, across]


@torch.no_grad()
def uncertain_points(masks: Tensor, settings: MaskLossSettings) -> Tensor:
    """Draw the most uncertain of many random points, and some random ones (Kirillov et al. 2020, section 3.1).

    Args:
        masks: (N, H, W) logits; the least certain points are those with a logit near 0.
        settings: how many.

    Returns:
        (N, P, 2).
    """
    number, device = len(masks), masks.device
    important = round(settings.num_points * settings.importance_sample_ratio)
    drawn = max(important, round(settings.num_points * settings.oversample_ratio))
    candidates = torch.rand(number, drawn, 2, device=device)
    best = (-point_sample(masks.float(), candidates).abs()).topk(important, dim=1).indices
    uncertain = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.cat([uncertain, torch.rand(number, settings.num_points - important, 2, device=device)], dim=1)
