"""Batches of captions with their images: what both kinds of data, streamed.py and cached.py, share."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch

from simzss.concepts.bank import ConceptBank
from simzss.data.shards import Skipped, summarise_skipped
from simzss.distributed import gather_values, world_size
from simzss.errors import ConfigError
from simzss.models.feature_norm import FeatureNorm
from simzss.models.features import ImageFeatures
from simzss.models.simzss import SimZSS
from simzss.training.data.batch import Batch
from simzss.training.data.encoding import CaptionEncoder
from simzss.training.data.prefetch import Prefetched

log = logging.getLogger(__name__)

# Images that a worker hands over, or that go through the backbone for its statistics, at a time. Few: a worker that is
# told to end finishes its block first; on a CPU activations above 32 MB are mapped and unmapped by the allocator at
# every layer, which takes half the time.
BLOCK = 16


class CaptionDataModule(pl.LightningDataModule):
    """Batches of captions with their images.

    An epoch is as many steps as the images fill global batches, at least one. Every rank makes the same number of
    steps.

    Args:
        model: whose backbone and tokenizer the data is prepared for.
        bank: concepts that count; None: none.
        batch_size: captions of the global batch, over all ranks.
        norm_images: images from which centring or whitening takes its statistics.
        seed: of shuffling, crops and the choice of captions.
        micro_batch: images, and captions, through the towers at a time; None: any number.

    Attributes:
        skipped: samples that could not be read, each once: a stream meets the same ones in every epoch.
    """

    def __init__(
        self,
        model: SimZSS,
        bank: ConceptBank | None,
        *,
        batch_size: int,
        norm_images: int,
        seed: int,
        micro_batch: int | None,
    ) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.encoder = CaptionEncoder(model.text_encoder, bank)
        self.batch_size = batch_size
        self.norm_images = norm_images
        self.seed = seed
        self.micro_batch = micro_batch
        self.skipped: dict[Skipped, None] = {}  # an ordered set

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimiser steps of an epoch, equal on all ranks."""
        raise NotImplementedError

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, on the host; there may be more than the epoch has steps."""
        raise NotImplementedError

    def feature_batches(self) -> Iterator[ImageFeatures]:
        """Yield raw features of this rank's share of `norm_images` images."""
        raise NotImplementedError

    def prepare_features(self, norm: FeatureNorm, fitted: bool) -> None:
        """Get ready for the first step; to be called when the model is on its device.

        Args:
            norm: of the model; its statistics are computed here.
            fitted: they are there already, from a checkpoint.
        """
        if not fitted:
            norm.fit(self.feature_batches())

    def local_batch_size(self) -> int:
        """Return the number of captions of a batch on one rank.

        Raises:
            ConfigError: the global batch does not divide by the ranks.
        """
        if self.batch_size % world_size():
            raise ConfigError(f"data.batch_size={self.batch_size} does not divide by {world_size()} processes")
        return self.batch_size // world_size()

    def train_dataloader(self) -> Prefetched:
        """Return the loader of one epoch; Lightning asks anew each epoch."""
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        return Prefetched(lambda: self.batches(epoch), self.device, self.steps_per_epoch)

    @property
    def device(self) -> torch.device:
        """Return the device of this rank."""
        assert self.trainer is not None
        return self.trainer.strategy.root_device

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Note what was skipped on the way to a batch; Lightning calls this for each step."""
        self.note_skipped(batch.skipped)
        return batch

    def all_skipped(self) -> tuple[Skipped, ...]:
        """Return what all ranks have skipped; to be called by all of them."""
        return tuple(dict.fromkeys(record for share in gather_values(tuple(self.skipped)) for record in share))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: a run that goes on after its last epoch meets nothing of it again."""
        return {"skipped": [asdict(record) for record in self.all_skipped()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add what the run before has skipped."""
        self.skipped |= dict.fromkeys(Skipped(**record) for record in state_dict["skipped"])

    def note_skipped(self, skipped: tuple[Skipped, ...]) -> None:
        """Add to `skipped`; the first ones are logged."""
        if skipped and not self.skipped:
            log.warning("%s", summarise_skipped(skipped))
        self.skipped |= dict.fromkeys(skipped)


def generator_of(*numbers: int) -> torch.Generator:
    """Return a generator whose draws are a function of these numbers."""
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
