"""Proxy features: another model's features, whose similarities replace the last block's attention (ProxyCLIP)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from simzss.errors import ConfigError
from simzss.models.settings import BackboneSettings, ProxySettings

if TYPE_CHECKING:
    from simzss.models.backbone.base import Backbone


def check_proxy(settings: BackboneSettings, proxy: ProxySettings | None) -> ProxySettings | None:
    """Return the proxy of a backbone, None for none.

    Raises:
        ConfigError: `features=proxy` without a proxy, or a proxy for other features.
    """
    named = proxy if proxy is not None and proxy.name is not None else None
    if settings.features == "proxy" and named is None:
        raise ConfigError("backbone.features=proxy needs another backbone: give proxy=NAME")
    if settings.features != "proxy" and named is not None:
        raise ConfigError(f"proxy={named.name} is for backbone.features=proxy, not {settings.features}")
    return named


def proxy_backbone_settings(proxy: ProxySettings) -> BackboneSettings | None:
    """Return the settings of the proxy's own backbone; None where its features are handed over, as with SAM."""
    if proxy.timm_name is None or proxy.name is None:
        return None
    return BackboneSettings(name=proxy.name, timm_name=proxy.timm_name, weights=proxy.weights, features=proxy.features)


def proxy_map(backbone: Backbone, images: Tensor) -> Tensor:
    """Compute a proxy backbone's features (B, G, h', w') of images (B, 3, H, W) in 0..1.

    Images are resized to the nearest multiples of the proxy's stride.

    Raises:
        ConfigError: the proxy has no backbone of its own.
    """
    proxy, settings = backbone.proxy_backbone, backbone.proxy
    if proxy is None:
        name = None if settings is None else settings.name
        raise ConfigError(f"proxy={name} serves the windows of whole photos in segment, eval and threshold; here give "
                          "the name of a backbone")  # fmt: skip
    sides = [max(proxy.stride, round(side / proxy.stride) * proxy.stride) for side in images.shape[-2:]]
    if sides != list(images.shape[-2:]):
        images = F.interpolate(images, sides, mode="bicubic", antialias=True).clamp(0, 1)
    found = proxy(images)
    return found.patches.mT.unflatten(2, found.grid)
