"""timm models as backbones."""

from collections.abc import Sequence
from functools import partial
from threading import get_ident
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from simzss.errors import ConfigError, InputError
from simzss.models.backbone.base import Backbone
from simzss.models.backbone.dense import dense_last_block, proxy_last_block, supports_dense
from simzss.models.backbone.proxy import check_proxy, proxy_backbone_settings
from simzss.models.backbone.weights import create_model, find_weights, stride_of
from simzss.models.features import ImageFeatures
from simzss.models.settings import BackboneSettings, ProxySettings


class TimmBackbone(Backbone):
    """A frozen timm model with its own normalisation, patch size and token layout.

    Args:
        settings: which model, its weights and features (see `simzss.models.backbone.dense`).
        proxy: for `features=proxy`, the model whose similarities replace the last block's attention; without a
            `timm_name` its features are handed to `forward` and `patch_map`.

    Raises:
        ConfigError: settings that do not go together, an unknown model, an image size that it does not take.
        ModelError: weights that are missing or do not fit, a model without a patch grid.
    """

    def __init__(self, settings: BackboneSettings, proxy: ProxySettings | None = None) -> None:
        proxy, name = check_proxy(settings, proxy), settings.timm_name
        file = find_weights(settings.name, settings.weights)
        model: Any = create_model(name, file, pretrained=settings.weights != "random", head=settings.project)
        if settings.features != "last" and not supports_dense(model):
            raise ConfigError(f"backbone.features={settings.features} needs a standard ViT block; use last for {name}")
        if settings.project and not isinstance(getattr(model, "head", None), nn.Linear):
            raise ConfigError(f"backbone.project=true needs a model with one linear head, which {name} is not")
        data = resolve_model_data_config(model)
        super().__init__(settings, model, stride_of(model, name), data["mean"], data["std"])
        self.weights_file = file
        self.averages = getattr(model, "cls_token", None) is None and getattr(model, "attn_pool", None) is None
        self.proxy = proxy
        if proxy is not None:
            self.proxy_backbone = _proxy_backbone(proxy)
        self.has_tokens = True
        assert self.width > 0  # runs the model once, which tells whether it gives tokens or a map
        blocks = getattr(model, "blocks", None)
        if self.has_tokens and isinstance(blocks, nn.Sequential) and self.features != "proxy":
            self.num_blocks, self.block_width = len(blocks), int(model.embed_dim)

    def encode(self, images: Tensor, proxy_features: Tensor | None, with_cls: bool) -> ImageFeatures:
        """Run the network: see `Backbone.encode`."""
        grid = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        if self.features == "last":
            cls, patches = self._last(images)
        else:
            cls, patches = self._dense(images, grid, proxy_features, with_cls)
        self.has_tokens = patches.ndim == 3  # the same at every call
        if not self.has_tokens:  # a map: channels first or last
            patches = patches if patches.shape[-1] == cls.shape[-1] else patches.permute(0, 2, 3, 1)
            grid = (patches.shape[1], patches.shape[2])
            patches = patches.flatten(1, 2)
        if proxy_features is not None:
            grid = (proxy_features.shape[2], proxy_features.shape[3])
        return ImageFeatures(self.model.head(cls) if self.project and with_cls else cls, patches, grid)

    @torch.no_grad()
    def finish(self, patches: Tensor) -> Tensor:
        """Apply the norms and the head after the last block to patches (B, N, C): (B, N, D)."""
        patches = patches.to(self.dtype)
        if self.features != "last":
            patches = self.model.norm(patches)
        # timm does this to the pooled token alone: the norm after average pooling, the head
        if self.has_tokens and isinstance(norm := getattr(self.model, "fc_norm", None), nn.Module):
            patches = norm(patches)
        return self.model.head(patches) if self.project else patches

    @torch.no_grad()
    def intermediates(self, images: Tensor, depths: Sequence[int]) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
        """Return features of several blocks and of the end: see `Backbone.intermediates`."""
        blocks, prefix = self.model.blocks, self.model.num_prefix_tokens
        found: dict[int, Tensor] = {}
        thread = get_ident()  # hooks see the forward passes of all threads that share this model

        def keep(depth: int, tokens: Tensor) -> None:
            if get_ident() == thread:
                found[depth] = tokens[:, prefix:]

        def stem(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            keep(0, inputs[0])

        def block(depth: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            keep(depth, output)

        handles = [
            blocks[depth - 1].register_forward_hook(partial(block, depth))
            if depth
            else blocks[0].register_forward_pre_hook(stem)
            for depth in depths
        ]
        try:
            end = self._run(images, None, with_cls=False)
        finally:
            for handle in handles:
                handle.remove()
        return [found[depth].mT.unflatten(2, end.grid) for depth in depths], self.finish(end.patches), end.grid

    def _last(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class token (B, D) before the head, and patches (B, N, D) or a map of them."""
        tokens = self.model.forward_features(images)
        cls = self.model.forward_head(tokens, pre_logits=True)
        return cls, tokens[:, self.model.num_prefix_tokens :] if tokens.ndim == 3 else tokens

    def _dense(
        self, images: Tensor, grid: tuple[int, int], proxy_features: Tensor | None, with_cls: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the class token (B, D) before the head, and patches (B, N, C) of an attention of their own."""
        model, prefix = self.model, self.model.num_prefix_tokens
        (tokens,) = model.forward_intermediates(
            images,
            indices=[len(model.blocks) - 2],
            return_prefix_tokens=prefix > 0,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if prefix > 0:
            patches, prefix_tokens = tokens
            tokens = torch.cat([prefix_tokens, patches], dim=1)
        last = model.blocks[-1]
        cls = model.forward_head(model.norm(last(tokens)), pre_logits=True) if with_cls else tokens[:, 0]
        if proxy_features is not None:
            assert self.proxy is not None
            beta, gamma = self.proxy.beta, self.proxy.gamma
            return cls, proxy_last_block(last, tokens, prefix, grid, proxy_features, beta, gamma)
        return cls, dense_last_block(last, tokens, self.features)[:, prefix:]


def _proxy_backbone(proxy: ProxySettings) -> Backbone | None:
    """Build the proxy's own backbone; an error in its settings names `proxy`."""
    try:
        settings = proxy_backbone_settings(proxy)
        return None if settings is None else TimmBackbone(settings)
    except InputError as error:
        raise type(error)(f"proxy={proxy.name}: {error}".replace("backbone.", "proxy.")) from error
