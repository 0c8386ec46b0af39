"""A backbone of your own. Its model folders are read by `load_model(folder, backbone=ConvBackbone(settings))`."""

import torch.nn.functional as F
from torch import Tensor, nn

from simzss.models.backbone.base import Backbone
from simzss.models.features import ImageFeatures
from simzss.models.settings import BackboneSettings


class ConvBackbone(Backbone):
    """Patch embedding and two residual convolutions."""

    def __init__(self, settings: BackboneSettings, width: int = 64) -> None:
        blocks = [nn.Conv2d(width, width, 3, padding=1) for _ in range(2)]
        super().__init__(settings, nn.Sequential(nn.Conv2d(3, width, 16, stride=16), *blocks), stride=16)
        self.num_blocks, self.block_width = 2, width

    def encode(self, images: Tensor, proxy_features: Tensor | None, with_cls: bool) -> ImageFeatures:
        """Compute class token (B, D) and patches (B, h * w, C) of normalised images."""
        end = self._maps(images)[-1]
        return ImageFeatures(end.mean(dim=(2, 3)), end.flatten(2).mT, (end.shape[2], end.shape[3]))

    def finish(self, patches: Tensor) -> Tensor:
        """Normalise patches (B, N, C)."""
        return F.layer_norm(patches, patches.shape[-1:])

    def intermediates(self, images, depths):
        """Return maps at several depths, finished patches and their grid; only a mask head needs it."""
        maps = self._maps(self.normalise(images))
        return [maps[depth] for depth in depths], self.finish(maps[-1].flatten(2).mT), tuple(maps[-1].shape[2:])

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = [self.model[0](images)]
        for block in self.model[1:]:
            maps.append(maps[-1] + F.gelu(block(maps[-1])))
        return maps
