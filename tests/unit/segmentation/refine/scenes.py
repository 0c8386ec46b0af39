"""What refinements are tested on: masks that are known, and smooth probabilities."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class Masks:
    """Logits (P, M, h, w) over the whole image, and predicted IoU (P, M)."""

    logits: torch.Tensor
    iou: torch.Tensor

    def at(self, size, index=None):
        return F.interpolate(self.logits if index is None else self.logits[index], size, mode="bilinear")


def blobs(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Smooth probabilities (count, height, width)."""
    coarse = torch.randn(1, count, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (2 * F.interpolate(coarse, (height, width), mode="bicubic")[0]).softmax(dim=0)
