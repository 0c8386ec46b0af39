"""The LightningModule: one SimZSS step, in the words of the paper. No formula lives here."""

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from simzss.distributed import world_size
from simzss.losses.concept import concept_loss, global_prototypes
from simzss.losses.contrastive import contrastive_loss
from simzss.losses.settings import LossSettings
from simzss.models.features import ImageFeatures, TextFeatures
from simzss.models.pooling import similarity_pool, token_sums
from simzss.models.settings import TextPooling
from simzss.models.simzss import SimZSS
from simzss.training.base import BaseModule
from simzss.training.data.batch import Batch
from simzss.training.settings import OptimSettings


class SimZSSModule(BaseModule):
    """Trains the text encoder of a `SimZSS` model.

    Args:
        model: what learns.
        num_concepts: K, size of the concept bank (0 without one).
        loss: weights, target and temperatures.
        optim: optimiser and schedule.
        seed: see `BaseModule`.
        micro_batch: captions through the text encoder at a time; None: the whole batch. The losses always see the
            whole batch.
    """

    def __init__(
        self,
        model: SimZSS,
        num_concepts: int,
        loss: LossSettings,
        optim: OptimSettings,
        seed: int,
        micro_batch: int | None = None,
    ) -> None:
        super().__init__(model, optim, seed)
        self.num_concepts = num_concepts
        self.loss = loss
        self.micro_batch = micro_batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of this rank's B captions of I images, with M concept mentions."""
        image = self.encode_image(batch)  # cls (I, D), patches (I, N, D)
        text = self.encode_text(batch)  # pooled (B, D), tokens (T, D)

        # Products of the losses are small; in bf16 their rounding would be the loss's own size.
        with torch.autocast(self.device.type, enabled=False):
            # Image and caption as wholes.
            cls = image.cls if batch.image_index is None else image.cls[batch.image_index]  # (B, D)
            contrastive = contrastive_loss(cls, text.pooled, self.model.logit_scale, batch.image_index)

            # Each concept is the sum of its tokens in all captions of all ranks ...
            sums = token_sums(text.tokens, batch.token_index, batch.token_concept, self.num_concepts)  # (K, D)
            prototypes, present = global_prototypes(sums, batch.mention_concept)  # (K, D), (K,)

            # ... pools the patches that look like it ...
            queries = prototypes[batch.mention_concept]  # (M, D)
            positions = (batch.mention_image, batch.mention_position, batch.max_mentions)
            pooled = similarity_pool(queries, image.patches, *positions, self.loss.pool_temperature)  # (M, D)

            # ... and what it pooled is told from the other concepts.
            concept = concept_loss(
                pooled, prototypes, present, batch.mention_concept, self.loss.concept_temperature, self.loss.target
            )
            loss = contrastive + self.loss.concept_weight * concept

        self._log(loss, contrastive, concept, batch)
        self.note_loss(loss)
        return loss

    def encode_image(self, batch: Batch) -> ImageFeatures:
        """Return L2-normalised features of the I images."""
        return batch.images.features(self.model)

    def encode_text(self, batch: Batch) -> TextFeatures:
        """Return sentence vectors (B, D), and the tokens (T, D) of all blocks, concatenated.

        With a micro-batch only these are kept: what the gradient needs inside the tower is computed again block by
        block on the way back (GradCache, Gao et al. 2021).
        """
        encode = self.model.encode_text
        if self.micro_batch is not None:
            encode = partial(checkpoint, encode, use_reentrant=False)
        blocks = [encode(block.input_ids, block.attention_mask) for block in batch.text]
        pooled = torch.cat([block.pooled for block in blocks])[batch.caption_index]
        return TextFeatures(pooled, torch.cat([block.tokens.flatten(0, 1) for block in blocks]))

    @property
    def text_pooling(self) -> TextPooling:
        """Return how class names are best read out of what was trained (measured: README).

        The concept loss trains the tokens of names. Where it has no weight, or where the contrastive loss itself meets
        the patches because the global feature is their mean, the sentence says more.
        """
        return "sentence" if self.loss.concept_weight == 0 or self.model.backbone.averages else "tokens"

    def on_fit_start(self) -> None:
        """Compute the feature statistics, unless a checkpoint brought them."""
        fitted = self.trainer.ckpt_path is not None
        self.trainer.datamodule.prepare_features(self.model.feature_norm, fitted)  # type: ignore[attr-defined]

    def _log(self, loss: Tensor, contrastive: Tensor, concept: Tensor, batch: Batch) -> None:
        size = len(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=world_size() > 1)
        parts = {"train/loss_contrastive": contrastive, "train/loss_concept": concept}
        self.log_dict(parts, batch_size=size, sync_dist=world_size() > 1)
        self.log("train/concepts_per_image", len(batch.mention_concept) / size, batch_size=size)
        self.log("train/logit_scale", self.model.logit_scale.exp().clamp(max=100.0), batch_size=size)
        self.log_rate(size)
