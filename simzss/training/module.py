"""The LightningModule: one SimZSS step, in the words of the paper. No formula lives here."""

import logging
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from simzss.distributed import world_size
from simzss.errors import InputError, nearest
from simzss.losses.concept import TARGETS, concept_loss, global_prototypes
from simzss.losses.contrastive import contrastive_loss
from simzss.models.features import ImageFeatures, TextFeatures
from simzss.models.pooling import similarity_pool, token_sums
from simzss.models.simzss import SimZSS
from simzss.training.data.batch import Batch
from simzss.training.data.datamodule import CaptionData
from simzss.training.learner import Learner
from simzss.training.optim import OptimConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossConfig:
    """`conf/loss`: weight of the concept loss (0: LiT), its target, both temperatures."""

    concept_weight: float
    target: str
    concept_temperature: float
    pool_temperature: float

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"loss.target={self.target} is unknown; {nearest(self.target, TARGETS)}")
        for name in ("concept_temperature", "pool_temperature"):
            value = getattr(self, name)
            if not 0 < value < math.inf:  # so that NaN is refused too
                raise InputError(f"loss.{name}={value} must be above 0")
        if not 0 <= self.concept_weight < math.inf:
            raise InputError(f"loss.concept_weight={self.concept_weight} must be at least 0")


class SimZSSModule(Learner):
    """Trains the text encoder of a `SimZSS` model.

    Args:
        model: what learns.
        num_concepts: K, size of the concept bank (0 without one).
        loss: weights, target and temperatures.
        optim: optimiser and schedule.
        seed: reseeds every epoch, so that a resumed run draws what the uninterrupted one would.
        micro_batch: images and captions that go through the towers at a time, None for the whole batch. The losses
            always see the whole batch.
    """

    def __init__(
        self,
        model: SimZSS,
        num_concepts: int,
        loss: LossConfig,
        optim: OptimConfig,
        seed: int,
        micro_batch: int | None = None,
    ) -> None:
        super().__init__(model, optim, seed)
        self.num_concepts = num_concepts
        self.loss = loss
        self.micro_batch = micro_batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on this rank's B images with their captions and M concept mentions."""
        self.data.on_skipped(batch.skipped)
        image = self.encode_image(batch)  # cls (I, D), patches (I, N, D)
        text = self.encode_text(batch)  # pooled (B, D), tokens (T, D)

        # Products of the losses are small; in bf16 their rounding would be the loss's own size.
        with torch.autocast(self.device.type, enabled=False):
            # Image and caption as wholes.
            cls = image.cls if batch.image_row is None else image.cls[batch.image_row]  # (B, D)
            contrastive = contrastive_loss(cls, text.pooled, self.model.logit_scale, batch.image_row)

            # Each concept is the sum of its tokens in all captions of all ranks ...
            sums = token_sums(text.tokens, batch.token, batch.token_concept, self.num_concepts)  # (K, D)
            prototypes, present = global_prototypes(sums, batch.mention_concept)  # (K, D), (K,)

            # ... pools the patches that look like it ...
            queries = prototypes[batch.mention_concept]  # (M, D)
            places = (batch.mention_image, batch.mention_slot, batch.slots)
            pooled = similarity_pool(queries, image.patches, *places, self.loss.pool_temperature)  # (M, D)

            # ... and what it pooled is told from the other concepts.
            concept = concept_loss(
                pooled, prototypes, present, batch.mention_concept, self.loss.concept_temperature, self.loss.target
            )
            loss = contrastive + self.loss.concept_weight * concept

        self._log(loss, contrastive, concept, batch)
        self.note_loss(loss)
        return loss

    def encode_image(self, batch: Batch) -> ImageFeatures:
        """L2-normalised features of the I images, from the cache where the batch brings no pixels."""
        if batch.image is None:
            return self.data.features(batch, self.model.feature_norm)
        chunks = [self.model.encode_image(images) for images in batch.image.split(self.micro_batch or len(batch))]
        return ImageFeatures(
            torch.cat([chunk.cls for chunk in chunks]), torch.cat([chunk.patches for chunk in chunks]), chunks[0].grid
        )

    def encode_text(self, batch: Batch) -> TextFeatures:
        """Sentence vectors (B, D), and all tokens (T, D) of the blocks of captions one after another.

        With a micro-batch only these are kept: what the gradient needs inside the tower is computed again block by
        block on the way back (GradCache, Gao et al. 2021).
        """
        encode = self.model.encode_text
        if self.micro_batch is not None:
            encode = partial(checkpoint, encode, use_reentrant=False)
        blocks = [encode(block.input_ids, block.attention_mask) for block in batch.text]
        pooled = torch.cat([block.pooled for block in blocks])[batch.caption_row]
        return TextFeatures(pooled, torch.cat([block.tokens.flatten(0, 1) for block in blocks]))

    @property
    def readout(self) -> str:
        """How class names are best read out of what was trained (measured: README).

        The concept loss trains the tokens of names. Where it has no weight, or where the contrastive loss itself meets
        the patches because the global feature is their mean, the sentence says more.
        """
        return "sentence" if self.loss.concept_weight == 0 or self.model.backbone.averages else "concept"

    @property
    def data(self) -> CaptionData:
        """The data module of the run."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, CaptionData)
        return data

    def on_fit_start(self) -> None:
        """Fit the feature statistics, unless a checkpoint brought them; apply them to features that are kept."""
        if self.trainer.ckpt_path is None:
            self.model.feature_norm.fit(self.data.feature_batches())
        self.data.on_norm_fitted(self.model.feature_norm)

    def _log(self, loss: Tensor, contrastive: Tensor, concept: Tensor, batch: Batch) -> None:
        size = len(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=world_size() > 1)
        parts = {"train/loss_contrastive": contrastive, "train/loss_concept": concept}
        self.log_dict(parts, batch_size=size, sync_dist=world_size() > 1)
        self.log("train/concepts_per_image", len(batch.mention_concept) / size, batch_size=size)
        self.log("train/logit_scale", self.model.logit_scale.exp().clamp(max=100.0), batch_size=size)
        self.log_rate(size)
