"""What training reads: batches of captions with their images, streamed from shards. The cached kind: cached.py."""

import hashlib
import json
import logging
import platform
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from simzss.concepts.bank import ConceptBank
from simzss.data.shards import Skipped, count_samples, expand_shards, read_indexes, shard_order, unfinished
from simzss.data.transforms import RandomCrop, WholeImage
from simzss.distributed import gather_values, rank, world_size
from simzss.errors import InputError
from simzss.models.feature_norm import FeatureNorm
from simzss.models.features import ImageFeatures
from simzss.models.simzss import SimZSS
from simzss.training.data.batch import Batch, summarise_skipped
from simzss.training.data.encoding import CaptionEncoder
from simzss.training.data.prefetch import Prefetched
from simzss.training.data.stream import OrderedBlocks, TrainingStream, assemble, workers_ended

log = logging.getLogger(__name__)

# Images that a worker hands over, or that go through the backbone for its statistics, at a time. Few: a worker that is
# told to end finishes its block first; on a CPU activations above 32 MB are mapped and unmapped by the allocator at
# every layer, which takes half the time.
BLOCK = 16


class CaptionData(pl.LightningDataModule):
    """Batches of captions with their images: what the two kinds share.

    An epoch is as many steps as the images fill global batches, at least one. Every rank makes the same number of
    steps.

    Args:
        model: whose backbone and tokenizer the data is prepared for.
        bank: concepts that count, None for none.
        batch_size: captions of the global batch, over all ranks.
        norm_images: images from which centring or whitening takes its statistics.
        seed: of shuffling, crops and the choice of captions.
        micro_batch: captions that go through the text encoder at a time at most, None for any number.
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
        self.skipped: dict[Skipped, None] = {}  # an ordered set: a stream meets the same ones in every epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, equal on all ranks."""
        raise NotImplementedError

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Batches of an epoch, on the host; there may be more than the epoch has steps."""
        raise NotImplementedError

    def feature_batches(self) -> Iterator[ImageFeatures]:
        """Raw features of this rank's share of `norm_images` images, for centring and whitening."""
        raise NotImplementedError

    def features(self, batch: Batch, norm: FeatureNorm) -> ImageFeatures:
        """Unit features of a batch that brings no images."""
        raise NotImplementedError

    def on_norm_fitted(self, norm: FeatureNorm) -> None:
        """Called once before the first step, when the statistics are known."""

    def local_batch_size(self) -> int:
        """Captions of a batch on one rank.

        Raises:
            InputError: the global batch does not divide by the ranks.
        """
        if self.batch_size % world_size():
            raise InputError(f"data.batch_size={self.batch_size} does not divide by {world_size()} processes")
        return self.batch_size // world_size()

    def train_dataloader(self) -> Prefetched:
        """Loader of one epoch; Lightning asks anew each epoch."""
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        return Prefetched(lambda: self.batches(epoch), self.device, self.steps_per_epoch)

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        assert self.trainer is not None
        return self.trainer.strategy.root_device

    def on_skipped(self, skipped: tuple[Skipped, ...]) -> None:
        """Note samples that could not be used, each once."""
        if skipped and not self.skipped:
            log.warning("%s", summarise_skipped(skipped))
        self.skipped |= dict.fromkeys(skipped)


class StreamedData(CaptionData):
    """Images as they stream by, in random crops, with fresh random captions.

    Args:
        model: see `CaptionData`, as the others that are not here.
        bank: see there.
        shards: glob or brace pattern, or a list of them.
        num_workers: decoding processes per rank.
        captions_per_image: of a batch; the backbone sees the image once for all of them.
        shuffle: samples in the shuffle buffer of the stream.
        min_crop: smallest share of the image that a random crop keeps.

    Raises:
        InputError: no sample, or a batch that does not divide by the captions of an image.
    """

    def __init__(
        self,
        model: SimZSS,
        bank: ConceptBank | None,
        *,
        shards: str | list[str],
        batch_size: int,
        num_workers: int,
        captions_per_image: int,
        shuffle: int,
        min_crop: float,
        norm_images: int,
        seed: int,
        micro_batch: int | None,
    ) -> None:
        super().__init__(
            model, bank, batch_size=batch_size, norm_images=norm_images, seed=seed, micro_batch=micro_batch
        )
        self.urls = expand_shards(shards)
        self.num_workers = num_workers
        self.captions_per_image = captions_per_image
        self.shuffle = shuffle
        self.min_crop = min_crop
        indexes = read_indexes(self.urls)
        self.unfinished = unfinished(indexes)
        self.samples = count_samples(self.urls, indexes)
        if self.samples == 0:
            raise InputError(f"data.shards={shards} holds no sample")

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, equal on all ranks."""
        return max(1, self.samples * self.captions_per_image // self.batch_size)

    def local_images(self) -> int:
        """Images of a batch on one rank.

        Raises:
            InputError: the captions of a batch do not divide by the ranks and the captions of an image.
        """
        captions = self.local_batch_size()
        if captions % self.captions_per_image:
            raise InputError(
                f"data.captions_per_image={self.captions_per_image} does not divide the {captions} captions of a "
                "batch on each process"
            )
        return captions // self.captions_per_image

    def setup(self, stage: str) -> None:
        """Check what only the ranks together know.

        Raises:
            InputError: on all ranks: the batch does not divide by them, or they see different shards.
        """
        self.local_images()
        self._require_same_shards()
        if self.unfinished and rank() == 0:  # said here, since processes know their rank by now: not once by each
            log.warning("%s", self.unfinished)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Endless batches: a function of seed, epoch and rank."""
        stream = TrainingStream(
            self.urls,
            RandomCrop(self.backbone.image_size, self.min_crop),
            self.encoder,
            BLOCK,
            self.captions_per_image,
            self.shuffle,
            self.seed,
            epoch,
        )
        return assemble(self._loader(stream), self.local_images(), self.encoder.pad_id, self.micro_batch)

    def feature_batches(self) -> Iterator[ImageFeatures]:
        """Raw features of this rank's share of `norm_images` images."""
        limit = max(1, self.norm_images // world_size())
        seen = 0
        # Not the first shards of the list: these may all come from one of several sets.
        urls = next(shard_order(self.urls, self.seed, 0))
        # Fewer images at a time where few are dealt to many ranks: each gets some.
        size = max(1, min(BLOCK, self.samples // world_size()))
        blocks = iter(self._loader(OrderedBlocks(urls, WholeImage(self.backbone.image_size), size)))
        with workers_ended(blocks):
            for block in blocks:
                if len(block.image):
                    yield self.backbone.to(self.device)(block.image.to(self.device, non_blocking=True))
                seen += len(block.image)
                if seen >= limit:
                    return

    def _loader(self, dataset: IterableDataset) -> DataLoader:
        # The generator keeps the loader from drawing its worker seed from the run's own random stream.
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.accelerator.is_available(),
            generator=generator_of(self.seed, 0, rank()),
            multiprocessing_context="fork" if self.num_workers else None,
        )

    def _require_same_shards(self) -> None:
        """Ranks deal the list of shards among them, and make as many steps as it has samples: it must be the same."""
        names = hashlib.sha256(json.dumps([Path(url).name for url in self.urls]).encode()).hexdigest()
        seen = gather_values((platform.node(), len(self.urls), self.samples, names))
        for other, (node, count, samples, digest) in enumerate(seen):
            if (count, samples, digest) != seen[0][1:]:
                raise InputError(
                    f"data.shards: process {other} on {node} sees {count} shards of {samples} samples, process 0 on "
                    f"{seen[0][0]} {seen[0][1]} of {seen[0][2]}: every machine needs the same files"
                )


def generator_of(*numbers: int) -> torch.Generator:
    """Random numbers that depend on nothing but these."""
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
