"""Batches from shards: images as they stream by, in random crops, with fresh random captions."""

import hashlib
import json
import logging
import platform
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, IterableDataset

from simzss.concepts.bank import ConceptBank
from simzss.data.index import read_indexes, require_sizes, unfinished
from simzss.data.shards import count_samples, expand_shards, shard_order
from simzss.data.transforms import RandomCrop, WholeImage
from simzss.distributed import gather_values, rank, world_size
from simzss.errors import ConfigError, DataError
from simzss.models.features import ImageFeatures
from simzss.models.simzss import SimZSS
from simzss.program import end_with_lost_batch
from simzss.training.data.assemble import assemble, ending_workers
from simzss.training.data.batch import Batch
from simzss.training.data.datamodule import BLOCK, CaptionDataModule, generator_of
from simzss.training.data.stream import OrderedImages, TrainingStream
from simzss.training.settings import StreamSettings

log = logging.getLogger(__name__)


class StreamDataModule(CaptionDataModule):
    """Images as they stream by, in random crops, with fresh random captions.

    Args:
        model: see `CaptionDataModule`, as the other ones.
        bank: see there.
        settings: shards, and how they are read.
        seed: see there.
        micro_batch: see there.

    Raises:
        DataError: no such shards, or no sample in them.
    """

    def __init__(
        self, model: SimZSS, bank: ConceptBank | None, settings: StreamSettings, *, seed: int, micro_batch: int | None
    ) -> None:
        sizes = {"batch_size": settings.batch_size, "norm_images": settings.norm_images}
        super().__init__(model, bank, **sizes, seed=seed, micro_batch=micro_batch)
        self.settings = settings
        self.urls = expand_shards(settings.shards)
        require_sizes(self.urls)
        self.unfinished = unfinished(read_indexes(self.urls))
        self.samples = count_samples(self.urls)
        if self.samples == 0:
            raise DataError(f"data.shards={settings.shards} holds no sample")

    @property
    def steps_per_epoch(self) -> int:
        """See `CaptionDataModule`."""
        return max(1, self.samples * self.settings.captions_per_image // self.batch_size)

    def local_images(self) -> int:
        """Return the number of images of a batch on one rank.

        Raises:
            ConfigError: the captions of a batch do not divide by the ranks and the captions of an image.
        """
        captions, per_image = self.local_batch_size(), self.settings.captions_per_image
        if captions % per_image:
            raise ConfigError(
                f"data.captions_per_image={per_image} does not divide the {captions} captions of a batch on each "
                "process"
            )
        return captions // per_image

    def setup(self, stage: str) -> None:
        """Check what only the ranks together know.

        Raises:
            InputError: on all ranks: the batch does not divide by them, or they see different shards.
        """
        self.local_images()
        self._require_same_shards()
        if self.unfinished and rank() == 0:  # processes know their rank by now: said once
            log.warning("%s", self.unfinished)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield endless batches, a function of seed, epoch and rank."""
        stream = TrainingStream(
            self.urls,
            RandomCrop(self.backbone.image_size, self.settings.min_crop),
            self.encoder,
            BLOCK,
            self.settings.captions_per_image,
            self.settings.shuffle,
            self.seed,
            epoch,
        )
        return assemble(self._loader(stream), self.local_images(), self.encoder.pad_id, self.micro_batch)

    def feature_batches(self) -> Iterator[ImageFeatures]:
        """See `CaptionDataModule`."""
        limit = max(1, self.norm_images // world_size())
        seen = 0
        # Not the first shards of the list: these may all come from one of several sets.
        urls = next(shard_order(self.urls, self.seed, 0))
        # Fewer images at a time where few are dealt to many ranks: each gets some.
        size = max(1, min(BLOCK, self.samples // world_size()))
        blocks = iter(self._loader(OrderedImages(urls, WholeImage(self.backbone.image_size), size)))
        with ending_workers(blocks):
            for pixels in blocks:
                if len(pixels):
                    yield self.backbone.to(self.device)(pixels.to(self.device, non_blocking=True))
                seen += len(pixels)
                if seen >= limit:
                    return

    def _loader(self, dataset: IterableDataset) -> DataLoader:
        # The generator keeps the loader from drawing its worker seed from the run's own random stream.
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.settings.num_workers,
            pin_memory=torch.accelerator.is_available(),
            generator=generator_of(self.seed, 0, rank()),
            multiprocessing_context="fork" if self.settings.num_workers else None,
            worker_init_fn=end_with_lost_batch,
        )

    def _require_same_shards(self) -> None:
        """Refuse different lists of shards: ranks deal them out and make as many steps as they have samples."""
        names = hashlib.sha256(json.dumps([Path(url).name for url in self.urls]).encode()).hexdigest()
        seen = gather_values((platform.node(), len(self.urls), self.samples, names))
        for other, (node, count, samples, digest) in enumerate(seen):
            if (count, samples, digest) != seen[0][1:]:
                raise DataError(
                    f"data.shards: process {other} on {node} sees {count} shards of {samples} samples, process 0 on "
                    f"{seen[0][0]} {seen[0][1]} of {seen[0][2]}: every machine needs the same files"
                )
