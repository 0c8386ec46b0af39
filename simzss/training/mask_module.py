"""The LightningModule of a head that learns from masks: one step, in the words of the paper. No formula lives here."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simzss.data.benchmark import IGNORE
from simzss.data.masks import MaskBatch, MaskData
from simzss.distributed import rank, total, world_size
from simzss.losses.masks import (
    MaskLossConfig,
    assignment_cost,
    class_loss,
    labels_at,
    look_up,
    mask_losses,
    objects_of,
    uncertain_points,
)
from simzss.models.simzss import SimZSS
from simzss.multires.cost import measure_cost
from simzss.multires.head import MultiResHead, Round
from simzss.multires.matching import match
from simzss.segmentation.background import Background
from simzss.segmentation.classifier import build_classifier
from simzss.segmentation.protocol import Protocol
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
        self.empty = 0  # crops so far that showed none of the classes

    def training_step(self, batch: MaskBatch, batch_idx: int) -> Tensor:
        """One step on this rank's B crops with their labels."""
        parts = self.losses(batch)
        loss = torch.stack(list(parts.values())).sum()
        self._log(loss, parts, batch)
        self.note_loss(loss)
        return loss

    def losses(self, batch: MaskBatch) -> dict[str, Tensor]:
        """Weighted parts of the loss, each over all rounds of the queries."""
        # The whole image and its windows, in one forward of the frozen backbone ...
        levels = self.head.look(self.model.backbone, self.model.feature_norm.patches, batch.images)

        # ... what the queries say of them, before the first round and after each ...
        rounds = self.head(levels)

        # ... and how far it is from the objects that are there: deep supervision of every round.
        with torch.autocast(self.device.type, enabled=False):
            labels = batch.labels.long()
            objects = [objects_of(own, IGNORE, len(self.class_groups)) for own in labels]
            found = [self._round_losses(said, labels, objects) for said in rounds]
        return {name: torch.stack([part[name] for part in found]).sum() for name in found[0]}

    def _round_losses(self, said: Round, labels: Tensor, objects: Sequence[Tensor]) -> dict[str, Tensor]:
        """Losses of one round.

        Args:
            said: by the queries.
            labels: (B, S, S).
            objects: for each image the M classes that occur.
        """
        assert self.words is not None
        logits = self.head.class_logits(said.vectors, self.words)  # (B, Q, K + 1)
        pairs = self._assignment(said, logits, labels, objects)

        # Each query is told the class of its object, or that it has none.
        targets = torch.full(logits.shape[:2], logits.shape[2] - 1, device=labels.device)
        for row, (query, item) in enumerate(pairs):
            targets[row, query] = objects[row][item]
        counted = (labels != IGNORE).flatten(1).any(dim=1)
        named = class_loss(logits, targets, counted, self.loss.no_object)

        # Masks that have an object are compared with it, mostly where they are uncertain.
        masks = torch.cat([said.masks[row, query] for row, (query, _) in enumerate(pairs)])  # (N, H, W)
        points = uncertain_points(masks.detach(), self.loss)  # (N, P, 2)
        owners = torch.cat([torch.full_like(query, row) for row, (query, _) in enumerate(pairs)])  # (N)
        at = labels_at(labels, owners, points)  # (N, P)
        classes = torch.cat([objects[row][item] for row, (_, item) in enumerate(pairs)])
        bce, dice = mask_losses(look_up(masks, points), at == classes[:, None], at != IGNORE)
        weights = self.loss
        return {
            "class": weights.class_weight * named,
            "bce": weights.bce_weight * bce,
            "dice": weights.dice_weight * dice,
        }

    @torch.no_grad()
    def _assignment(
        self, said: Round, logits: Tensor, labels: Tensor, objects: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """For each image which queries explain which of its objects."""
        points = torch.rand(len(labels), self.loss.points, 2, device=labels.device)
        at = labels_at(labels, torch.arange(len(labels), device=labels.device), points)  # (B, P)
        costs = []
        for row, classes in enumerate(objects):
            masks = look_up(said.masks[row], points[row].expand(said.masks.shape[1], -1, -1))  # (Q, P)
            inside = at[row] == classes[:, None]
            costs.append(assignment_cost(logits[row], masks, classes, inside, at[row] != IGNORE, self.loss))
        return match(costs)

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
        cost = measure_cost(self.model, self.head, lambda: self._rehearse(batch, precision))
        if rank() == 0:
            log.info("%s", cost.summary(len(batch.images) * world_size(), world_size()))

    def rehearsal_batch(self, count: int, size: int) -> MaskBatch:
        """Noise of the shape of a batch, each image with two classes, or with one where there is only one."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
        labels = torch.zeros(count, size, size, dtype=torch.uint8)
        labels[:, size // 2 :] = min(1, len(self.class_groups) - 1)
        return MaskBatch(images.to(self.device), labels.to(self.device))

    def _rehearse(self, batch: MaskBatch, precision: Any) -> Tensor:
        with precision():
            return torch.stack(list(self.losses(batch).values())).sum()

    def _log(self, loss: Tensor, parts: dict[str, Tensor], batch: MaskBatch) -> None:
        size = len(batch.images)
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=world_size() > 1)
        named = {f"train/loss_{name}": value for name, value in parts.items()}
        self.log_dict(named, batch_size=size, sync_dist=world_size() > 1)
        empty = int((batch.labels >= len(self.class_groups)).flatten(1).all(dim=1).sum())
        self.empty += empty
        sums = {"sync_dist": world_size() > 1, "reduce_fx": "sum"}
        self.log("train/empty_crops", float(empty), batch_size=size, **sums)  # type: ignore[arg-type]
        self.log_rate(size)

    def on_fit_end(self) -> None:
        """Say how many crops taught nothing but where objects are not."""
        empty = int(total(torch.tensor(float(self.empty), device=self.device)))
        if empty and rank() == 0:
            log.info("%d crops showed none of the classes", empty)
