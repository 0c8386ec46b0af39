"""The head that is trained with masks on top of a frozen backbone and a text encoder (MROVSeg).

Whole image and windows go through the backbone together, adapters at several depths make one map of both, queries
attend to it inside the masks that they predict. A query's class is its cosine with the words: its vector is what the
frozen model sees inside its mask, corrected by what the query has learned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simzss.errors import InputError, nearest
from simzss.models.backbone.base import Backbone
from simzss.models.mask_head.adapter import MultiResAdapter
from simzss.models.mask_head.decoder import PixelDecoder, QueryDecoder
from simzss.models.mask_head.ensemble import claims, ensemble, pool_by_masks
from simzss.models.mask_head.layers import mlp
from simzss.models.mask_head.views import VIEWS, Level, look


@dataclass(frozen=True)
class HeadConfig:
    """`conf/multires`: the shape of a head.

    Args:
        window: side in pixels of a window, and of the whole image made small: what the backbone sees at a time.
        scale: windows along each side of a training image, and along the short side of any other.
        views: `both`, or one alone: `global`, `windows`.
        gate: whether a gate mixes windows and whole image at each place.
        restore: whether the convolutions of the adapters reach over the borders of windows.
        masked: whether queries attend inside their masks only.
        depths: after how many blocks of the backbone features are tapped; 0 for the stem.
        width: channels.
        heads: of the attention; `width` is a multiple of 4 and of them.
        queries: most masks of an image.
        layers: rounds of the queries.
        upsample: cells of a mask along each side of a cell of the backbone; 1, 2, 4 or 8.
        learned_share: weight of the frozen model's own opinion for classes that masks were trained on, 0..1.
        unseen_share: the same for other classes.
    """

    window: int
    scale: int
    views: str
    gate: bool
    restore: bool
    masked: bool
    depths: tuple[int, ...]
    width: int
    heads: int
    queries: int
    layers: int
    upsample: int
    learned_share: float
    unseen_share: float

    def __post_init__(self) -> None:
        if self.views not in VIEWS:
            raise InputError(f"multires.views={self.views} is unknown; {nearest(self.views, VIEWS)}")
        for name in ("window", "scale", "width", "heads", "queries", "layers"):
            if getattr(self, name) < 1:
                raise InputError(f"multires.{name}={getattr(self, name)} must be at least 1")
        if self.width % 4 or self.width % self.heads:
            raise InputError(f"multires.width={self.width} must be a multiple of 4 and of multires.heads={self.heads}")
        if self.upsample not in (1, 2, 4, 8):
            raise InputError(f"multires.upsample={self.upsample} must be 1, 2, 4 or 8")
        for name in ("learned_share", "unseen_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"multires.{name}={getattr(self, name)} must be 0 to 1")
        whole = [depth for depth in self.depths if isinstance(depth, int) and not isinstance(depth, bool)]
        if not self.depths or list(self.depths) != sorted(set(whole)):
            raise InputError(f"multires.depths={list(self.depths)} must be numbers of blocks, each once, in order")

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "HeadConfig":
        """From a configuration or a model folder."""
        return cls(**{**values, "depths": tuple(values["depths"])})

    def plain(self) -> dict[str, Any]:
        """What `from_plain` reads, for JSON."""
        return asdict(self) | {"depths": list(self.depths)}


@dataclass(frozen=True)
class Round:
    """What Q queries say after a round.

    `vectors` (B, Q, D), unit, to be compared with words; `masks` (B, Q, H, W) logits; `seen` (B, Q, D), unit: what the
    frozen model sees inside the masks.
    """

    vectors: Tensor
    masks: Tensor
    seen: Tensor


class MultiResHead(nn.Module):
    """See the module.

    Args:
        config: its shape.
        tapped: channels of the backbone's blocks.
        embedding: D, of the text.
        trained: names of the classes that masks were trained on.
    """

    def __init__(self, config: HeadConfig, tapped: int, embedding: int, trained: Sequence[str] = ()) -> None:
        super().__init__()
        self.config = config
        self.trained = tuple(trained)
        self.adapters = nn.ModuleList(
            MultiResAdapter(tapped, config.width, config.views, config.gate, config.restore) for _ in config.depths
        )
        levels = 2 if config.views == "both" else 1
        self.pixels = PixelDecoder(config.width, config.upsample)
        self.decoder = QueryDecoder(
            config.width, config.queries, config.layers, config.heads, levels, masked=config.masked
        )
        self.correct = mlp(config.width, config.width, embedding)
        last = self.correct[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)  # before training a query means what the frozen model sees
        nn.init.zeros_(last.bias)
        self.no_object = nn.Parameter(torch.randn(embedding) * embedding**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def look(self, backbone: Backbone, finish: Callable[[Tensor], Tensor], images: Tensor) -> list[Level]:
        """What the backbone sees of images (B, 3, R * window, Q * window): see `simzss.models.mask_head.views.look`."""
        return look(backbone, finish, images, self.config.window, self.config.depths, self.config.views)

    def forward(self, levels: Sequence[Level]) -> list[Round]:
        """What the queries say before the first round and after each, of what `look` saw."""
        adapted = [
            adapter([level.taps[number] for level in levels]) for number, adapter in enumerate(self.adapters)
        ]  # depths x levels
        maps = [torch.stack(same).sum(dim=0) for same in zip(*adapted, strict=True)]
        rounds = self.decoder(maps, self.pixels(maps[-1]))
        return [self._said(queries, masks, levels) for queries, masks in rounds]

    def _said(self, queries: Tensor, masks: Tensor, levels: Sequence[Level]) -> Round:
        with torch.autocast(masks.device.type, enabled=False):
            inside = masks.detach()
            seen = F.normalize(sum(pool_by_masks(inside, level.dense) for level in levels), dim=-1)  # type: ignore[arg-type]
            return Round(F.normalize(seen + self.correct(queries.float()), dim=-1), masks.float(), seen)

    @property
    def scale(self) -> Tensor:
        """Factor on cosines, at most 100."""
        return self.logit_scale.exp().clamp(max=100.0)

    def class_logits(self, vectors: Tensor, words: Tensor) -> Tensor:
        """(B, Q, D) unit vectors of queries against (K, D) unit vectors of classes: (B, Q, K + 1), last "no object"."""
        return self._logits(vectors, vectors @ words.to(vectors).T)

    def _logits(self, vectors: Tensor, cosines: Tensor) -> Tensor:
        """Logits (B, Q, S + 1) of vectors (B, Q, D) and their cosines (B, Q, S) with classes, last "no object"."""
        none = vectors @ F.normalize(self.no_object, dim=0).to(vectors)
        return self.scale * torch.cat([cosines, none[..., None]], dim=-1)

    def maps(
        self, said: Round, levels: Sequence[Level], similarity: Callable[[Tensor], Tensor], share: Tensor
    ) -> Tensor:
        """Probabilities of classes at places.

        Args:
            said: by the queries after the last round.
            levels: what the backbone saw.
            similarity: (B, N, D) unit vectors -> (B, S, N) cosines with the classes.
            share: (S), see `simzss.models.mask_head.ensemble.ensemble`.

        Returns:
            (B, S, H, W) that sum to 1 over the classes.
        """
        learned = self._logits(said.vectors, similarity(said.vectors).mT)
        cosines = [similarity(level.dense.flatten(2).mT).unflatten(2, level.dense.shape[2:]) for level in levels]
        size = said.masks.shape[2:]
        zero_shot = torch.stack([F.interpolate(own, size, mode="bilinear") for own in cosines]).mean(dim=0)
        return ensemble(claims(learned, said.masks), self.scale * zero_shot, share)


def build_head(config: HeadConfig, backbone: Backbone, trained: Sequence[str] = ()) -> MultiResHead:
    """A head that fits a backbone.

    Raises:
        InputError: a backbone without blocks, depths or windows that it has not.
    """
    try:
        blocks = backbone.check_taps(config.depths)
        backbone.check_size(config.window, config.window)
    except InputError as error:
        raise InputError(f"multires: {error}") from error
    return MultiResHead(config, blocks, backbone.width, trained)
