"""The frozen vision backbone: any timm model as class token + patch grid."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from simzss.errors import InputError, nearest
from simzss.models.backbone.dense import dense_last_block, proxy_last_block, supports_dense
from simzss.models.backbone.timm import create_model, find_weights, stride_of
from simzss.models.features import ImageFeatures
from simzss.models.fingerprint import fingerprint

FEATURES = ("last", "value", "self", "proxy")


class Backbone(nn.Module):
    """A frozen timm model with its own normalisation, patch size and token layout.

    Args:
        name: our name of it; `weights=FOLDER` looks for a file of this name.
        timm_name: timm's name, tag included.
        weights: local file (.safetensors, .pth, .pt, .bin) or a folder that holds `<name>.<suffix>`;
            None fetches timm's from the hub; `random` leaves it untrained (tests, timing).
        features: patch features: `last` (output of the last block), or for standard ViTs `value`, `self` or `proxy`
            (see `simzss.models.backbone.dense`).
        project: apply the model's own head (CLIP's projection into the joint space) to every token.
        image_size: side of training images in pixels.
        proxy: for `features=proxy` the other backbone, whose similarities guide the last block: `name`, `timm_name`,
            `weights`, `features` as here, and `shift` and `gain` of `dense.proxy_attention`. Without a
            `timm_name` its features are handed to `forward` and `patch_map`, as the segmenter does with SAM's.

    Raises:
        InputError: unknown name or option, weights that are missing or do not fit, a size it cannot take.
    """

    mean: Tensor
    std: Tensor
    has_tokens: bool

    def __init__(
        self,
        name: str,
        timm_name: str,
        weights: str | None = None,
        features: str = "last",
        project: bool = False,
        image_size: int = 224,
        proxy: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if features not in FEATURES:
            raise InputError(f"backbone.features={features} is unknown; {nearest(features, FEATURES)}")
        if features == "proxy" and proxy is None:
            raise InputError("backbone.features=proxy needs another backbone: give proxy=NAME")
        if features != "proxy" and proxy is not None:
            raise InputError(f"proxy={proxy['name']} is for backbone.features=proxy, not {features}")
        self.name = name
        self.timm_name = timm_name
        self.features = features
        self.project = project
        self.image_size = image_size
        self.weights = weights
        self.weights_file = find_weights(name, weights)
        self.model: Any = create_model(timm_name, self.weights_file, pretrained=weights != "random", head=project)
        if features != "last" and not supports_dense(self.model):
            raise InputError(f"backbone.features={features} needs a standard ViT block; use last for {timm_name}")
        if project and not isinstance(getattr(self.model, "head", None), nn.Linear):
            raise InputError(f"backbone.project=true needs a model with one linear head, which {timm_name} is not")
        data = resolve_model_data_config(self.model)
        self.register_buffer("mean", torch.tensor(data["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(data["std"]).view(1, 3, 1, 1), persistent=False)
        self.stride = stride_of(self.model, timm_name)
        self.check_size(image_size, image_size)
        self.model.to(memory_format=torch.channels_last)  # twice as fast for CNNs on CPU, no matter for ViTs
        self.model.requires_grad_(False)
        self.fingerprint = fingerprint(self.model)
        self.proxy = dict(proxy) if proxy is not None else None
        self.guide = _guide(proxy) if proxy is not None else None
        self.eval()
        self.width = self._probe_width(timm_name)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: a frozen backbone has no dropout and no running statistics."""
        return super().train(False)

    def use_precision(self, precision: str) -> "Backbone":
        """Keep the weights in bfloat16 for `bf16-mixed`.

        Nothing here learns, so no float32 copy is needed; autocast would convert every weight at every call.

        Raises:
            InputError: full precision is asked for after the weights were rounded.
        """
        lowered = next(self.model.parameters()).dtype == torch.bfloat16
        if self.guide is not None:
            self.guide.use_precision(precision)
        if precision == "bf16-mixed":
            self.model.to(torch.bfloat16)
        elif lowered:
            raise InputError(f"precision={precision} is not possible any more: the weights of backbone {self.name} are "
                             "rounded to bfloat16; load the model again")  # fmt: skip
        return self

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image size that is not a multiple of the stride.

        Raises:
            InputError: names the size, the stride and the nearest sizes.
        """
        for value in (height, width):
            if value < self.stride or value % self.stride:
                lower = max(self.stride, value // self.stride * self.stride)
                raise InputError(f"image size {value} does not fit backbone {self.name}: sides must be multiples of "
                                 f"{self.stride}, such as {lower} or {lower + self.stride}")  # fmt: skip

    @property
    def averages(self) -> bool:
        """Whether the global feature is the mean of the patches, as in a CNN, rather than a token of its own."""
        return getattr(self.model, "cls_token", None) is None and getattr(self.model, "attn_pool", None) is None

    @torch.no_grad()
    def forward(self, images: Tensor, guide: Tensor | None = None) -> ImageFeatures:
        """Features of images.

        Args:
            images: (B, 3, H, W), uint8 in 0..255 or float in 0..1; H and W multiples of `stride`.
            guide: (B, G, h', w') features of the same images that guide `features=proxy`; None: those of `proxy`.

        Returns:
            `cls` (B, D) and `patches` (B, N, D) in the dtype of the weights, not normalised.
        """
        cls, patches, grid = self._encode(images, guide)
        return ImageFeatures(self.model.head(cls) if self.project else cls, self.finish(patches), grid)

    @torch.no_grad()
    def patch_map(self, images: Tensor, guide: Tensor | None = None) -> Tensor:
        """Patches of images before `finish`, without the class token: (B, C, h, w); arguments as of `forward`.

        What is done to maps of several windows or cells, such as averaging them, is done here, as long as the features
        are in the last block's own space.
        """
        _, patches, grid = self._encode(images, guide, cls=False)
        return patches.mT.unflatten(2, grid)

    @torch.no_grad()
    def finish(self, patches: Tensor) -> Tensor:
        """What follows the last block: patches (B, N, C) through the norms and the head, (B, N, D)."""
        patches = patches.to(next(self.model.parameters()).dtype)
        if self.features != "last":
            patches = self.model.norm(patches)
        # timm does this to the pooled token alone: the norm after average pooling, the head
        if self.has_tokens and isinstance(norm := getattr(self.model, "fc_norm", None), nn.Module):
            patches = norm(patches)
        return self.model.head(patches) if self.project else patches

    @torch.no_grad()
    def taps(self, images: Tensor, depths: Sequence[int]) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
        """Features on the way through the blocks, and at the end, by one forward.

        Args:
            images: as of `forward`.
            depths: accepted by `check_taps`.

        Returns:
            (B, C, h, w) after so many blocks for each depth, the stem being 0; patches (B, h * w, D) as of `forward`;
            h and w.
        """
        blocks, prefix = self.model.blocks, self.model.num_prefix_tokens
        found: dict[int, Tensor] = {}

        def stem(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            found[0] = inputs[0][:, prefix:]

        def keep(depth: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            found[depth] = output[:, prefix:]

        handles = [
            blocks[depth - 1].register_forward_hook(partial(keep, depth))
            if depth
            else blocks[0].register_forward_pre_hook(stem)
            for depth in depths
        ]
        try:
            _, patches, grid = self._encode(images, None, cls=False)
        finally:
            for handle in handles:
                handle.remove()
        return [found[depth].mT.unflatten(2, grid) for depth in depths], self.finish(patches), grid

    def check_taps(self, depths: Sequence[int]) -> int:
        """Channels of the blocks whose features `taps` gives.

        Raises:
            InputError: no such blocks or depths.
        """
        blocks = getattr(self.model, "blocks", None)
        if not self.has_tokens or not isinstance(blocks, nn.Sequential) or self.features == "proxy":
            kind = "features=proxy" if self.features == "proxy" else self.timm_name
            raise InputError(f"backbone {self.name} has no features to tap at several depths: {kind}; give a ViT")
        wrong = [depth for depth in depths if not 0 <= depth < len(blocks)]
        if wrong:
            raise InputError(f"depth {wrong[0]} is none of backbone {self.name}, which has 0 to {len(blocks) - 1}")
        return int(self.model.embed_dim)

    def _encode(self, images: Tensor, guide: Tensor | None, cls: bool = True) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Class token (B, D) before the head, patches (B, N, C) before `finish`, their grid."""
        assert guide is None or self.features == "proxy", "a guide is for features=proxy"
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        images = images.to(self.mean.dtype) / scale
        if self.features == "proxy" and guide is None:
            guide = self._guide_map(images)
        normal = ((images - self.mean) / self.std).to(
            next(self.model.parameters()).dtype, memory_format=torch.channels_last
        )
        grid = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        try:
            token, patches = self._last(normal) if self.features == "last" else self._dense(normal, grid, guide, cls)
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or images.shape[-2:] == (self.image_size, self.image_size):
                raise
            raise InputError(f"backbone {self.name} takes images of {self.image_size} x {self.image_size} but not of "
                             f"{images.shape[-2]} x {images.shape[-1]}: {error}") from error  # fmt: skip
        self.has_tokens = patches.ndim == 3  # the same at every call, the first being that of the constructor
        if not self.has_tokens:  # a map: channels first or last
            patches = patches if patches.shape[-1] == token.shape[-1] else patches.permute(0, 2, 3, 1)
            grid = (patches.shape[1], patches.shape[2])
            patches = patches.flatten(1, 2)
        return token, patches, grid if guide is None else (guide.shape[2], guide.shape[3])

    def _last(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model.forward_features(images)
        cls = self.model.forward_head(tokens, pre_logits=True)
        return cls, tokens[:, self.model.num_prefix_tokens :] if tokens.ndim == 3 else tokens

    def _dense(
        self, images: Tensor, grid: tuple[int, int], guide: Tensor | None, with_cls: bool
    ) -> tuple[Tensor, Tensor]:
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
        if guide is not None:
            assert self.proxy is not None
            return cls, proxy_last_block(last, tokens, prefix, grid, guide, self.proxy["shift"], self.proxy["gain"])
        return cls, dense_last_block(last, tokens, self.features)[:, prefix:]

    def _guide_map(self, images: Tensor) -> Tensor:
        """(B, G, h', w') features of the other backbone for images (B, 3, H, W) in 0..1."""
        if self.guide is None:
            assert self.proxy is not None
            raise InputError(f"proxy={self.proxy['name']} guides the windows of whole photos in segment, eval and "
                             "threshold; here give the name of a backbone")  # fmt: skip
        stride = self.guide.stride
        sides = [max(stride, round(side / stride) * stride) for side in images.shape[-2:]]
        if sides != list(images.shape[-2:]):
            images = F.interpolate(images, sides, mode="bicubic", antialias=True).clamp(0, 1)
        found = self.guide(images)
        return found.patches.mT.unflatten(2, found.grid)

    def _probe_width(self, timm_name: str) -> int:
        images = torch.zeros(1, 3, self.image_size, self.image_size)
        cells = self.image_size // self.stride
        guide = torch.ones(1, 1, cells, cells) if self.proxy is not None and self.guide is None else None
        try:
            out = self(images, guide)
        except (AssertionError, RuntimeError) as error:
            raise InputError(f"image size {self.image_size} does not fit backbone {self.name}: {error}") from error
        except (AttributeError, TypeError) as error:
            raise InputError(f"timm's {timm_name} is of a kind that gives no patches here: {error}") from error
        if out.grid[0] * out.grid[1] != out.patches.shape[1]:
            raise InputError(f"backbone {self.name}: {out.patches.shape[1]} patches do not make a grid of "
                             f"{out.grid[0]} x {out.grid[1]}: timm's {timm_name} is not supported")  # fmt: skip
        if out.cls.shape[-1] != out.patches.shape[-1]:
            raise InputError(f"backbone {self.name}: class token has {out.cls.shape[-1]} channels, patches have "
                             f"{out.patches.shape[-1]}; project={self.project} does not suit it")  # fmt: skip
        return int(out.cls.shape[-1])


def with_proxy(backbone: Mapping[str, Any], proxy: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a `Backbone` from the groups `backbone` and `proxy` of a configuration."""
    return {**backbone, "proxy": None if proxy["name"] is None else dict(proxy)}


def _guide(options: Mapping[str, Any]) -> Backbone | None:
    """The other backbone of `features=proxy`; None where its features come from elsewhere."""
    if options["timm_name"] is None:
        return None
    try:
        return Backbone(**{key: options[key] for key in ("name", "timm_name", "weights", "features")})
    except InputError as error:
        raise InputError(f"proxy={options['name']}: {error}".replace("backbone.", "proxy.")) from error
