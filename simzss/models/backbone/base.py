"""The interface of frozen vision backbones, and what all of them share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from simzss.errors import ConfigError, ModelError
from simzss.models.backbone.proxy import proxy_map
from simzss.models.features import ImageFeatures
from simzss.models.fingerprint import fingerprint
from simzss.models.settings import BackboneSettings, ProxySettings


class Backbone(nn.Module, ABC):
    """A frozen vision backbone: images in, class token and patch grid out.

    A backbone of one's own is a subclass with four methods: `__init__` hands its network to this class, `encode` runs
    it, `finish` does what follows the last block, and `intermediates`, which only a mask head needs, returns features
    of earlier blocks (see `examples/own_backbone.py`).

    Args:
        settings: names, weights and image size.
        network: module with the weights; frozen here.
        stride: side of a patch in pixels.
        mean: per-channel mean of the images that the network was trained on, in 0..1.
        std: per-channel standard deviation of the same.

    Attributes:
        proxy: settings of `features=proxy`, else None.
        proxy_backbone: backbone whose similarities replace the last block's attention; None without, and where its
            features are handed over instead, as with SAM.
        weights_file: local file of the weights; None for the hub and for untrained ones.
        fingerprint: short hash of the weights.
        averages: the class token is the mean of the patches, as in a CNN, rather than a token of its own.
        num_blocks: number of blocks; `intermediates` takes depths below it; 0: it is not implemented.
        block_width: channels of these features.

    Raises:
        ConfigError: an image size that is not a multiple of the stride.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        settings: BackboneSettings,
        network: nn.Module,
        stride: int,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.settings = settings
        self.name = settings.name
        self.features = settings.features
        self.project = settings.project
        self.image_size = settings.image_size
        self.stride = stride
        self.proxy: ProxySettings | None = None
        self.proxy_backbone: Backbone | None = None
        self.weights_file: Path | None = None
        self.averages = False
        self.num_blocks = 0
        self.block_width = 0
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.check_size(self.image_size, self.image_size)
        self.model: Any = network.to(memory_format=torch.channels_last)  # twice as fast for CNNs on a CPU
        self.model.requires_grad_(False)
        self.fingerprint = fingerprint(self.model)
        self.eval()

    @abstractmethod
    def encode(self, images: Tensor, proxy_features: Tensor | None, with_cls: bool) -> ImageFeatures:
        """Run the network.

        Args:
            images: (B, 3, H, W) normalised, in the dtype of the weights; H and W are multiples of `stride`.
            proxy_features: (B, G, h', w') for `features=proxy`, else None.
            with_cls: False where the caller does not use the class token, which may then hold anything.

        Returns:
            Class token (B, D); patches (B, h * w, C), which `finish` makes (B, h * w, D); h and w.
        """

    def finish(self, patches: Tensor) -> Tensor:
        """Apply what follows the last block, such as a norm and a head, to patches (B, N, C): (B, N, D)."""
        return patches

    def intermediates(self, images: Tensor, depths: Sequence[int]) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
        """Return features of several blocks and of the end, from one forward pass.

        Args:
            images: as of `forward`.
            depths: accepted by `check_intermediates`.

        Returns:
            (B, C, h, w) after so many blocks for each depth, 0 being the stem; patches (B, h * w, D) as of `forward`;
            h and w.
        """
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, images: Tensor, proxy_features: Tensor | None = None) -> ImageFeatures:
        """Compute features of images.

        Args:
            images: (B, 3, H, W), uint8 in 0..255 or float in 0..1; H and W are multiples of `stride`.
            proxy_features: (B, G, h', w') for `features=proxy`; None: those of `proxy_backbone`.

        Returns:
            `cls` (B, D) and `patches` (B, N, D) in the dtype of the weights, not normalised.

        Raises:
            ModelError: images of a size that this network does not take.
        """
        found = self._run(images, proxy_features)
        return ImageFeatures(found.cls, self.finish(found.patches), found.grid)

    @torch.no_grad()
    def patch_map(self, images: Tensor, proxy_features: Tensor | None = None) -> Tensor:
        """Return patches before `finish`, (B, C, h, w); arguments as of `forward`.

        Maps of several windows or cells are averaged here, while the features are in the last block's own space.
        """
        found = self._run(images, proxy_features, with_cls=False)
        return found.patches.mT.unflatten(2, found.grid)

    def check_intermediates(self, depths: Sequence[int]) -> int:
        """Return the number of channels of `intermediates`.

        Raises:
            ConfigError: a depth that this backbone does not have, or it has no intermediate features.
        """
        if not self.num_blocks:
            raise ConfigError(f"backbone {self.name} ({self.settings.timm_name}, features={self.features}) has no "
                              "intermediate features; give a ViT")  # fmt: skip
        for depth in depths:
            if not 0 <= depth < self.num_blocks:
                raise ConfigError(f"depth {depth} is none of backbone {self.name}: 0 to {self.num_blocks - 1}")
        return self.block_width

    def check_size(self, height: int, width: int) -> None:
        """Reject an image size that is not a multiple of the stride.

        Raises:
            ConfigError: names the size, the stride and the nearest sizes.
        """
        for value in (height, width):
            if value < self.stride or value % self.stride:
                lower = max(self.stride, value // self.stride * self.stride)
                raise ConfigError(f"image size {value} does not fit backbone {self.name}: sides must be multiples of "
                                  f"{self.stride}, such as {lower} or {lower + self.stride}")  # fmt: skip

    def use_precision(self, precision: str) -> Self:
        """Convert the weights to bfloat16 for `bf16-mixed`.

        Nothing here learns, so no float32 copy is needed; autocast would convert every weight at every call.

        Raises:
            ConfigError: full precision is asked for after the weights were rounded.
        """
        if self.proxy_backbone is not None:
            self.proxy_backbone.use_precision(precision)
        if precision == "bf16-mixed":
            self.model.to(torch.bfloat16)
        elif self.dtype == torch.bfloat16:
            raise ConfigError(f"precision={precision} is not possible any more: the weights of backbone {self.name} "
                              "are rounded to bfloat16; load the model again")  # fmt: skip
        return self

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: a frozen backbone has no dropout and no running statistics."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(self.model.parameters(), self.mean).dtype

    @cached_property
    def width(self) -> int:
        """Number D of channels, measured on an empty image.

        Raises:
            ConfigError: an image size that the network does not take.
            ModelError: features of another kind than `encode` promises.
        """
        size = self.image_size
        proxy = None
        if self.proxy is not None and self.proxy_backbone is None:
            proxy = torch.ones(1, 1, size // self.stride, size // self.stride, device=self.mean.device)
        try:
            out = self(torch.zeros(1, 3, size, size, device=self.mean.device), proxy)
        except (AssertionError, RuntimeError) as error:
            raise ConfigError(f"image size {size} does not fit backbone {self.name}: {error}") from error
        except (AttributeError, TypeError) as error:
            kind = self.settings.timm_name
            raise ModelError(f"backbone {self.name}: {kind} is of a kind without patches: {error}") from error
        if out.grid[0] * out.grid[1] != out.patches.shape[1]:
            raise ModelError(f"backbone {self.name}: {out.patches.shape[1]} patches do not make a grid of "
                             f"{out.grid[0]} x {out.grid[1]}: {self.settings.timm_name} is not supported")  # fmt: skip
        if out.cls.shape[-1] != out.patches.shape[-1]:
            raise ModelError(f"backbone {self.name}: class token has {out.cls.shape[-1]} channels, patches have "
                             f"{out.patches.shape[-1]}; project={self.project} does not suit it")  # fmt: skip
        return int(out.cls.shape[-1])

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images, uint8 in 0..255 or float in 0..1, by `mean` and `std`; in the dtype of the weights."""
        normal = (self._unit_range(images) - self.mean) / self.std
        return normal.to(self.dtype, memory_format=torch.channels_last)

    def _unit_range(self, images: Tensor) -> Tensor:
        """Convert images to float in 0..1."""
        return images.to(self.mean.dtype) / (255.0 if images.dtype == torch.uint8 else 1.0)

    def _run(self, images: Tensor, proxy_features: Tensor | None, with_cls: bool = True) -> ImageFeatures:
        """Normalise images, compute proxy features where they are needed, and encode."""
        assert proxy_features is None or self.features == "proxy", "proxy features are for features=proxy"
        if self.features == "proxy" and proxy_features is None:
            proxy_features = proxy_map(self, self._unit_range(images))
        try:
            return self.encode(self.normalise(images), proxy_features, with_cls)
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or images.shape[-2:] == (self.image_size, self.image_size):
                raise
            raise ModelError(f"backbone {self.name} takes images of {self.image_size} x {self.image_size} but not of "
                             f"{images.shape[-2]} x {images.shape[-1]}: {error}") from error  # fmt: skip
