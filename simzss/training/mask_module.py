"""The LightningModule of a head that learns from masks: one step, in the words of the paper. No formula lives here."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from simzss.data.benchmark import IGNORE
from simzss.distributed import rank, total, world_size
from simzss.losses.mask import (
    MaskLossConfig,
    assignment_cost,
    class_loss,
    labels_at,
    look_up,
    mask_losses,
    objects_of,
    uncertain_points,
)
from simzss.losses.matcher import match
from simzss.models.mask_head.cost import measure_cost
from simzss.models.mask_head.head import MultiResHead, Round
from simzss.models.simzss import SimZSS
from simzss.segmentation.background import Background
from simzss.segmentation.classifier import build_classifier
from simzss.segmentation.protocol import Protocol
from simzss.training.data.masks import MaskBatch, MaskData
from simzss.training.learner import Learner
from simzss.training.optim import OptimConfig

log = logging.getLogger(__name__)


class MaskModule(Learner):
    """Trains the head `model.multires`; everything else is frozen.

    Args:
        model: with a head.
        class_groups: names of the K classes that the labels mean.
        loss: weights and numbers of points.
        optim: optimiser and schedule.
        protocol: whose templates and merging of names make the words of the classes.
        readout: how names are read out of the text encoder.
        seed: see `Learner`.
    """

    def __init__(
        self,
        model: SimZSS,
        class_groups: Sequence[Sequence[str]],
        loss: MaskLossConfig,
        optim: OptimConfig,
        protocol: Protocol,
        readout: str,
        seed: int,
    ) -> None:
        super().__init__(model, optim, seed)
        model.requires_grad_(False)
        self.head.requires_grad_(True)
        self.class_groups = class_groups
        self.loss = loss
        self.protocol = protocol
        self._readout = readout
        self.words: Tensor | None = None
        self.empty = torch.tensor(0)  # crops so far that showed none of the classes, on the device

    def training_step(self, batch: MaskBatch, batch_idx: int) -> Tensor:
        """One step on this rank's B crops with their labels."""
        parts = self.losses(batch)
        loss = torch.stack(list(parts.values())).sum()
        self._log(loss, parts, batch)
        self.note_loss(loss)
        return loss

    def losses(self, batch: MaskBatch) -> dict[str, Tensor]:
        """Weighted parts of the loss, each over all rounds of the queries."""
        # What is to be found ...
        labels = batch.labels.long()
        objects = objects_of(labels, IGNORE, len(self.class_groups))

        # ... the whole image and its windows, in one forward of the frozen backbone ...
        levels = self.head.look(self.model.backbone, self.model.feature_norm.patches, batch.images)

        # ... what the queries say of them, before the first round and after each ...
        rounds = self.head(levels)

        # ... and how far it is from what is there: deep supervision of every round.
        with torch.autocast(self.device.type, enabled=False):
            assert self.words is not None
            logits = [self.head.class_logits(said.vectors, self.words) for said in rounds]  # (B, Q, K + 1) each
            pairs = self._assignments(rounds, logits, labels, objects)
            counted = (labels != IGNORE).flatten(1).any(dim=1)
            found = [self._round_losses(*each, labels, counted) for each in zip(rounds, logits, pairs, strict=True)]
        return {name: torch.stack([part[name] for part in found]).sum() for name in found[0]}

    def _round_losses(
        self, said: Round, logits: Tensor, pairs: Tensor, labels: Tensor, counted: Tensor
    ) -> dict[str, Tensor]:
        """Losses of one round.

        Args:
            said: by the queries.
            logits: (B, Q, K + 1) of their classes.
            pairs: (3, N), for each object that a query explains image, query and class.
            labels: (B, S, S).
            counted: (B) bool, images of which any pixel counts.
        """
        images, queries, classes = pairs

        # Each query is told the class of its object, or that it has none.
        none = torch.full(logits.shape[:2], logits.shape[2] - 1, device=labels.device)
        named = class_loss(logits, none.index_put((images, queries), classes), counted, self.loss.no_object)

        # Masks that have an object are compared with it, mostly where they are uncertain.
        masks = said.masks[images, queries]  # (N, H, W)
        points = uncertain_points(masks.detach(), self.loss)  # (N, P, 2)
        at = labels_at(labels, images, points)  # (N, P)
        bce, dice = mask_losses(look_up(masks, points), at == classes[:, None], at != IGNORE)
        weights = self.loss
        return {
            "class": weights.class_weight * named,
            "bce": weights.bce_weight * bce,
            "dice": weights.dice_weight * dice,
        }

    @torch.no_grad()
    def _assignments(
        self, rounds: Sequence[Round], logits: Sequence[Tensor], labels: Tensor, objects: Sequence[Tensor]
    ) -> Tensor:
        """Which queries explain which objects, in each round: (R, 3, N) of images, queries and classes."""
        classes = pad_sequence(list(objects), batch_first=True).to(labels.device)  # (B, M)
        every = torch.arange(len(labels), device=labels.device)
        costs = []
        for said, own in zip(rounds, logits, strict=True):
            points = torch.rand(len(labels), self.loss.points, 2, device=labels.device)
            at = labels_at(labels, every, points)  # (B, P)
            inside = at[:, None] == classes[:, :, None]  # (B, M, P)
            masks = look_up(said.masks, points)  # (B, Q, P)
            costs.append(assignment_cost(own, masks, classes, inside, at != IGNORE, self.loss))
        waited = torch.stack(costs).cpu()  # (R, B, Q, M): the device is waited for once for all rounds
        return torch.stack([_pairs(own, objects) for own in waited]).to(labels.device)

    @property
    def head(self) -> MultiResHead:
        """What learns."""
        assert self.model.multires is not None
        return self.model.multires

    @property
    def readout(self) -> str:
        """As the model was trained for, or as asked."""
        return self._readout

    def on_fit_start(self) -> None:
        """Read the names of the classes, and say what training will cost."""
        classifier = build_classifier(
            self.model,
            self.class_groups,
            background=Background(),
            template_set=self.protocol.templates,
            readout=self.readout,
            temperature=self.protocol.temperature,
        )
        self.words = classifier.weights.to(self.device)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MaskData)
        batch = self.rehearsal_batch(data.local_batch_size, data.size)
        precision = self.trainer.precision_plugin.forward_context
        cost = measure_cost(self.model, self.head, lambda: self.rehearse(batch, precision()))
        if rank() == 0:
            log.info("%s", cost.summary(len(batch.images) * world_size(), world_size()))

    def rehearsal_batch(self, count: int, size: int) -> MaskBatch:
        """Noise of the shape of a batch, each image with two classes, or with one where there is only one."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
        labels = torch.zeros(count, size, size, dtype=torch.uint8)
        labels[:, size // 2 :] = min(1, len(self.class_groups) - 1)
        return MaskBatch(images.to(self.device), labels.to(self.device))

    def rehearse(self, batch: MaskBatch, precision: AbstractContextManager[Any]) -> Tensor:
        """The loss of a step outside of a run, in this arithmetic."""
        with precision:
            return torch.stack(list(self.losses(batch).values())).sum()

    def _log(self, loss: Tensor, parts: dict[str, Tensor], batch: MaskBatch) -> None:
        size = len(batch.images)
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=world_size() > 1)
        named = {f"train/loss_{name}": value for name, value in parts.items()}
        self.log_dict(named, batch_size=size, sync_dist=world_size() > 1)
        empty = (batch.labels >= len(self.class_groups)).flatten(1).all(dim=1).sum()
        self.empty = self.empty.to(empty.device) + empty
        sums = {"sync_dist": world_size() > 1, "reduce_fx": "sum"}
        self.log("train/empty_crops", empty.float(), batch_size=size, **sums)  # type: ignore[arg-type]
        self.log_rate(size)

    def on_fit_end(self) -> None:
        """Say how many crops taught nothing but where objects are not."""
        empty = int(total(self.empty.to(self.device, torch.float)))
        if empty and rank() == 0:
            log.info("%d crops showed none of the classes", empty)


def _pairs(costs: Tensor, objects: Sequence[Tensor]) -> Tensor:
    """(3, N) images, queries and classes of the cheapest assignments by costs (B, Q, M)."""
    found = match([cost[:, : len(own)] for cost, own in zip(costs, objects, strict=True)])
    images = torch.cat([torch.full_like(queries, row) for row, (queries, _) in enumerate(found)])
    classes = torch.cat([own[items] for own, (_, items) in zip(objects, found, strict=True)])
    return torch.stack([images, torch.cat([queries for queries, _ in found]), classes])
