"""The LightningModule of a mask head: one step, in the words of the paper. No formula lives here."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simzss.data.benchmark import IGNORE
from simzss.data.settings import Background
from simzss.distributed import rank, total, world_size
from simzss.losses.mask import class_loss, mask_losses, objects_of
from simzss.losses.matcher import HungarianMatcher
from simzss.losses.points import point_sample, sample_labels, uncertain_points
from simzss.losses.settings import MaskLossSettings
from simzss.models.mask_head.head import DecoderOutput, MaskHead
from simzss.models.settings import TextPooling
from simzss.models.simzss import SimZSS
from simzss.segmentation.classifier import build_classifier
from simzss.segmentation.settings import Protocol
from simzss.training.base import BaseModule
from simzss.training.data.masks import MaskBatch, MaskDataModule
from simzss.training.settings import OptimSettings
from simzss.training.step_cost import measure_step

log = logging.getLogger(__name__)


class MaskModule(BaseModule):
    """Trains the head `model.mask_head`; everything else is frozen.

    Args:
        model: with a head.
        class_groups: names of the K classes of the labels.
        loss: weights and numbers of points.
        optim: optimiser and schedule.
        protocol: its templates and temperature make the text vectors of the classes.
        seed: see `BaseModule`.
    """

    def __init__(
        self,
        model: SimZSS,
        class_groups: Sequence[Sequence[str]],
        loss: MaskLossSettings,
        optim: OptimSettings,
        protocol: Protocol,
        seed: int,
    ) -> None:
        super().__init__(model, optim, seed)
        model.requires_grad_(False)
        self.head.requires_grad_(True)
        self.class_groups = class_groups
        self.loss = loss
        self.match = HungarianMatcher(loss, IGNORE)
        self.protocol = protocol
        self.class_vectors: Tensor | None = None
        self.background_crops = torch.tensor(0)  # so far, on the device

    def training_step(self, batch: MaskBatch, batch_idx: int) -> Tensor:
        """Compute the loss of this rank's B crops."""
        parts = self.losses(batch)
        loss = torch.stack(list(parts.values())).sum()
        self._log(loss, parts, batch)
        self.note_loss(loss)
        return loss

    def losses(self, batch: MaskBatch) -> dict[str, Tensor]:
        """Compute the weighted parts of the loss, each summed over all decoder layers."""
        # What is to be found ...
        labels = batch.labels.long()
        objects = objects_of(labels, IGNORE, len(self.class_groups))

        # ... the whole image and its windows, in one forward of the frozen backbone ...
        levels = self.head.encode(self.model.backbone, self.model.feature_norm.patches, batch.images)

        # ... what the queries predict, before the first decoder layer and after each ...
        outputs = self.head(levels)

        # ... and how far it is from what is there: deep supervision of every layer.
        with torch.autocast(self.device.type, enabled=False):
            assert self.class_vectors is not None
            logits = [self.head.class_logits(output.embeddings, self.class_vectors) for output in outputs]
            pairs = self.match(logits, [output.masks for output in outputs], labels, objects)
            counted = (labels != IGNORE).flatten(1).any(dim=1)
            layers = [self._layer_losses(*layer, labels, counted) for layer in zip(outputs, logits, pairs, strict=True)]
        return {name: torch.stack([layer[name] for layer in layers]).sum() for name in layers[0]}

    def _layer_losses(
        self, output: DecoderOutput, logits: Tensor, pairs: Tensor, labels: Tensor, counted: Tensor
    ) -> dict[str, Tensor]:
        """Compute the losses of one decoder layer.

        Args:
            output: of the layer.
            logits: (B, Q, K + 1) of the classes.
            pairs: (3, N) images, queries and classes of the matched pairs.
            labels: (B, S, S).
            counted: (B) bool, images of which any pixel counts.
        """
        images, queries, classes = pairs

        # Each query is taught the class of its object, or that it has none.
        no_object = torch.full(logits.shape[:2], logits.shape[2] - 1, device=labels.device)
        targets = no_object.index_put((images, queries), classes)
        named = class_loss(logits, targets, counted, self.loss.eos_coef)

        # Matched masks are compared with their objects, mostly where they are uncertain.
        masks = output.masks[images, queries]  # (N, H, W)
        points = uncertain_points(masks.detach(), self.loss)  # (N, P, 2)
        sampled = sample_labels(labels, images, points)  # (N, P)
        bce, dice = mask_losses(point_sample(masks, points), sampled == classes[:, None], sampled != IGNORE)
        return {
            "class": self.loss.class_weight * named,
            "bce": self.loss.bce_weight * bce,
            "dice": self.loss.dice_weight * dice,
        }

    @property
    def head(self) -> MaskHead:
        """Return what learns."""
        assert self.model.mask_head is not None
        return self.model.mask_head

    @property
    def text_pooling(self) -> TextPooling:
        """Return how class names become vectors: as for the model."""
        return self.model.text_pooling

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Accept checkpoints of version 0.1, where the head had another name."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name.replace("model.multires.", "model.mask_head."): state[name] for name in state}
        super().on_load_checkpoint(checkpoint)

    def on_fit_start(self) -> None:
        """Encode the names of the classes, and log what training will cost."""
        classifier = build_classifier(
            self.model,
            self.class_groups,
            background=Background(),
            template_set=self.protocol.templates,
            text_pooling=self.text_pooling,
            temperature=self.protocol.temperature,
        )
        self.class_vectors = classifier.weights.to(self.device)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MaskDataModule)
        batch = self.synthetic_batch(data.local_batch_size, data.dataset.size)

        def loss() -> Tensor:
            with self.trainer.precision_plugin.forward_context():
                return torch.stack(list(self.losses(batch).values())).sum()

        cost = measure_step(self.model, loss)
        if rank() == 0:
            log.info("%s", cost.summary(len(batch.images) * world_size(), world_size()))

    def synthetic_batch(self, count: int, size: int) -> MaskBatch:
        """Return noise of the shape of a batch, each image with two classes, or with one where there is only one."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
        labels = torch.zeros(count, size, size, dtype=torch.uint8)
        labels[:, size // 2 :] = min(1, len(self.class_groups) - 1)
        return MaskBatch(images.to(self.device), labels.to(self.device))

    def _log(self, loss: Tensor, parts: dict[str, Tensor], batch: MaskBatch) -> None:
        size, several = len(batch.images), world_size() > 1
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=several)
        named = {f"train/loss_{name}": value for name, value in parts.items()}
        self.log_dict(named, batch_size=size, sync_dist=several)
        background = (batch.labels >= len(self.class_groups)).flatten(1).all(dim=1).sum()
        self.background_crops = self.background_crops.to(background.device) + background
        self.log("train/empty_crops", background.float(), batch_size=size, sync_dist=several, reduce_fx="sum")
        self.log_rate(size)

    def on_fit_end(self) -> None:
        """Log the number of background-only crops, which teach only where objects are not."""
        crops = int(total(self.background_crops.to(self.device, torch.float)))
        if crops and rank() == 0:
            log.info("%d background-only crops: they showed none of the classes", crops)
