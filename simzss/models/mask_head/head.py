"""The mask head on top of a frozen backbone and a text encoder (MROVSeg, Zhu et al. 2024).

Whole image and windows go through the backbone together, adapters at several depths make one map of both, and queries
attend to it inside the masks that they predict. A query's class is its cosine with the text: its embedding is the
frozen model's features pooled over its mask, corrected by what the query has learned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simzss.errors import ConfigError, InputError
from simzss.models.backbone.base import Backbone
from simzss.models.mask_head.adapter import FeatureAdapter
from simzss.models.mask_head.decoder import PixelDecoder, QueryDecoder
from simzss.models.mask_head.ensemble import geometric_ensemble, mask_pool, semantic_inference
from simzss.models.mask_head.layers import mlp
from simzss.models.mask_head.views import FeatureLevel, encode_views
from simzss.models.settings import MaskHeadSettings


@dataclass(frozen=True)
class DecoderOutput:
    """Outputs of one decoder layer.

    Attributes:
        embeddings: (B, Q, D) unit vectors of the queries, to be compared with text.
        masks: (B, Q, H, W) logits.
    """

    embeddings: Tensor
    masks: Tensor


class MaskHead(nn.Module):
    """Predicts masks and their embeddings from the features of a frozen backbone; see the module.

    Args:
        settings: its shape.
        channels: C of the backbone's blocks.
        embedding: D of the text.
        trained: names of the classes with training masks.
    """

    def __init__(self, settings: MaskHeadSettings, channels: int, embedding: int, trained: Sequence[str] = ()) -> None:
        super().__init__()
        self.settings = settings
        self.trained = tuple(trained)
        width = settings.width
        self.adapters = nn.ModuleList(
            FeatureAdapter(channels, width, settings.views, settings.gate, settings.restore) for _ in settings.depths
        )
        levels = 2 if settings.views == "both" else 1
        self.pixels = PixelDecoder(width, settings.upsample)
        self.decoder = QueryDecoder(
            width, settings.queries, settings.layers, settings.heads, levels, masked=settings.masked
        )
        self.correct = mlp(width, width, embedding)
        last = self.correct[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)  # before training, an embedding is what the frozen model sees inside the mask
        nn.init.zeros_(last.bias)
        self.no_object = nn.Parameter(torch.randn(embedding) * embedding**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def encode(self, backbone: Backbone, finish: Callable[[Tensor], Tensor], images: Tensor) -> list[FeatureLevel]:
        """Encode images (B, 3, R * window, Q * window): see `simzss.models.mask_head.views.encode_views`."""
        settings = self.settings
        return encode_views(backbone, finish, images, settings.window, settings.depths, settings.views)

    def forward(self, levels: Sequence[FeatureLevel]) -> list[DecoderOutput]:
        """Return the outputs before the first decoder layer and after each."""
        adapted = [
            adapter([level.intermediates[number] for level in levels]) for number, adapter in enumerate(self.adapters)
        ]  # depths x levels
        maps = [torch.stack(same).sum(dim=0) for same in zip(*adapted, strict=True)]
        predictions = self.decoder(maps, self.pixels(maps[-1]))
        return [self._output(queries, masks, levels) for queries, masks in predictions]

    def _output(self, queries: Tensor, masks: Tensor, levels: Sequence[FeatureLevel]) -> DecoderOutput:
        with torch.autocast(masks.device.type, enabled=False):
            pooled = torch.stack([mask_pool(masks.detach(), level.dense) for level in levels]).sum(dim=0)
            seen = F.normalize(pooled, dim=-1)
            return DecoderOutput(F.normalize(seen + self.correct(queries.float()), dim=-1), masks.float())

    @property
    def scale(self) -> Tensor:
        """Return the factor on cosines, at most 100."""
        return self.logit_scale.exp().clamp(max=100.0)

    def class_logits(self, embeddings: Tensor, text: Tensor) -> Tensor:
        """Compare queries with classes.

        Args:
            embeddings: (B, Q, D) unit vectors of queries.
            text: (K, D) unit vectors of classes.

        Returns:
            (B, Q, K + 1) logits, the last of "no object".
        """
        return self._logits(embeddings, embeddings @ text.to(embeddings).T)

    def _logits(self, embeddings: Tensor, cosines: Tensor) -> Tensor:
        """Append "no object" to cosines (B, Q, S) of embeddings (B, Q, D), and scale."""
        none = embeddings @ F.normalize(self.no_object, dim=0).to(embeddings)
        return self.scale * torch.cat([cosines, none[..., None]], dim=-1)

    def ensemble_exponents(self, classes: Sequence[Sequence[str]]) -> Tensor:
        """Return (S) exponents of the frozen model's scores: alpha for classes with a trained name, beta for others."""
        trained, settings = set(self.trained), self.settings
        known = [not trained.isdisjoint(names) for names in classes]
        return torch.tensor([settings.ensemble_alpha if yes else settings.ensemble_beta for yes in known])

    def class_maps(
        self,
        output: DecoderOutput,
        levels: Sequence[FeatureLevel],
        similarity: Callable[[Tensor], Tensor],
        exponents: Tensor,
    ) -> Tensor:
        """Return the class probabilities of positions.

        Args:
            output: of the last decoder layer.
            levels: of `encode`.
            similarity: (B, N, D) unit vectors -> (B, S, N) cosines with the classes.
            exponents: (S) of `ensemble_exponents`.

        Returns:
            (B, S, H, W) that sum to 1 over the classes.
        """
        logits = self._logits(output.embeddings, similarity(output.embeddings).mT)
        learned = semantic_inference(logits, output.masks)
        cosines = [similarity(level.dense.flatten(2).mT).unflatten(2, level.dense.shape[2:]) for level in levels]
        size = output.masks.shape[2:]
        zero_shot = torch.stack([F.interpolate(maps, size, mode="bilinear") for maps in cosines]).mean(dim=0)
        return geometric_ensemble(learned, self.scale * zero_shot, exponents)


def build_mask_head(settings: MaskHeadSettings, backbone: Backbone, trained: Sequence[str] = ()) -> MaskHead:
    """Build a head that fits a backbone.

    Raises:
        ConfigError: a backbone without blocks, or depths or a window that it does not have.
    """
    try:
        channels = backbone.check_intermediates(settings.depths)
        backbone.check_size(settings.window, settings.window)
    except InputError as error:
        raise ConfigError(f"mask_head: {error}") from error
    return MaskHead(settings, channels, backbone.width, trained)
