"""Centring and whitening of frozen features with statistics of the training images."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simzss.distributed import total
from simzss.errors import ModelError, nearest
from simzss.models.features import ImageFeatures

MODES = ("none", "center", "whiten")


class FeatureNorm(nn.Module):
    """Map frozen features to unit vectors, centred or whitened before.

    Patches of one backbone share a strong common direction; without it cosines tell more. `center` subtracts the
    mean patch from patches and the mean class token from class tokens; `whiten` moreover multiplies both with the
    inverse square root of the patch covariance (ZCA), shrunk towards the identity.

    Args:
        mode: `none`, `center` or `whiten`.
        width: D.
        shrinkage: share of the mean variance added to every direction before whitening.

    Raises:
        ModelError: unknown mode.
    """

    cls_mean: Tensor
    patch_mean: Tensor
    matrix: Tensor

    def __init__(self, mode: str, width: int, shrinkage: float = 0.1) -> None:
        super().__init__()
        if mode not in MODES:
            raise ModelError(f"feature_norm={mode} is unknown; {nearest(mode, MODES)}")
        self.mode = mode
        self.shrinkage = shrinkage
        self.register_buffer("cls_mean", torch.zeros(width))
        self.register_buffer("patch_mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width) if mode == "whiten" else torch.empty(0))

    def forward(self, features: ImageFeatures) -> ImageFeatures:
        """Normalise features: L2-normalised float vectors of the same shapes."""
        return ImageFeatures(self._unit(features.cls, self.cls_mean), self.patches(features.patches), features.grid)

    def patches(self, patches: Tensor) -> Tensor:
        """Normalise patches (B, N, D) alone, as `forward` does."""
        return self._unit(patches, self.patch_mean)

    def _unit(self, vectors: Tensor, mean: Tensor) -> Tensor:
        vectors = vectors.to(mean.dtype)
        if self.mode != "none":
            vectors = vectors - mean
        if self.mode == "whiten":
            with torch.autocast(vectors.device.type, enabled=False):  # it would round the products to bfloat16
                vectors = vectors @ self.matrix
        return F.normalize(vectors, dim=-1)

    @torch.no_grad()
    def fit(self, batches: Iterable[ImageFeatures]) -> None:
        """Compute the statistics of raw features over all ranks; mode `none` reads nothing."""
        if self.mode == "none":
            return
        sums = _Moments(self.patch_mean)
        for features in batches:
            sums.add(features)
        sums.reduce()
        self.cls_mean.copy_(sums.cls_sum / sums.images)
        self.patch_mean.copy_(sums.patch_sum / sums.patches)
        if self.mode == "whiten":
            mean = sums.patch_sum / sums.patches
            covariance = sums.patch_outer / sums.patches - torch.outer(mean, mean)
            values, vectors = torch.linalg.eigh(covariance)
            values = values.clamp(min=0) + self.shrinkage * values.mean()
            self.matrix.copy_((vectors * values.rsqrt()) @ vectors.T)


class _Moments:
    """First and second moments in float64, summed over batches and ranks."""

    def __init__(self, like: Tensor) -> None:
        width = len(like)
        options: dict[str, Any] = {"dtype": torch.float64, "device": like.device}
        self.images = torch.zeros((), **options)
        self.patches = torch.zeros((), **options)
        self.cls_sum = torch.zeros(width, **options)
        self.patch_sum = torch.zeros(width, **options)
        self.patch_outer = torch.zeros(width, width, **options)

    def add(self, features: ImageFeatures) -> None:
        cls = features.cls.to(self.cls_sum)
        patches = features.patches.flatten(0, 1).to(self.patch_sum.device, torch.float32)
        self.images += len(cls)
        self.patches += len(patches)
        self.cls_sum += cls.sum(dim=0)
        self.patch_sum += patches.sum(dim=0, dtype=torch.float64)
        # One batch's products in float32, their sum over batches in float64.
        self.patch_outer += (patches.T @ patches).double()

    def reduce(self) -> None:
        for name in ("images", "patches", "cls_sum", "patch_sum", "patch_outer"):
            setattr(self, name, total(getattr(self, name)))
