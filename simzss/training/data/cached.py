"""Batches from a cache of features: every image once an epoch, with a fresh caption and view each time."""

import logging
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from simzss.concepts.bank import ConceptBank
from simzss.data.shards import expand_shards
from simzss.distributed import gather_values, raise_on_all_ranks, rank, world_size
from simzss.features.build import build_cache
from simzss.features.store import FeatureStore
from simzss.models.feature_norm import FeatureNorm
from simzss.models.features import ImageFeatures
from simzss.models.simzss import SimZSS
from simzss.training.data.batch import Batch, collate
from simzss.training.data.datamodule import BLOCK, CaptionDataModule, generator_of
from simzss.training.data.encoding import EncodedCaption
from simzss.training.data.images import BatchImages, CachedFeatures, CachedRows
from simzss.training.settings import CachedSettings

log = logging.getLogger(__name__)


class CachedDataModule(CaptionDataModule):
    """Features that `simzss cache` computed, on the device, in host memory or in the mapped files.

    Args:
        model: see `CaptionDataModule`, as the other ones.
        bank: see there.
        settings: the cache, and how it is made or completed from shards first.
        folder: of the cache.
        precision: of the backbone that makes it.
        seed: see there.
        micro_batch: see there.

    Raises:
        DataError: no such shards.
    """

    def __init__(
        self,
        model: SimZSS,
        bank: ConceptBank | None,
        settings: CachedSettings,
        folder: Path,
        *,
        precision: str,
        seed: int,
        micro_batch: int | None,
    ) -> None:
        sizes = {"batch_size": settings.batch_size, "norm_images": settings.norm_images}
        super().__init__(model, bank, **sizes, seed=seed, micro_batch=micro_batch)
        self.settings = settings
        self.folder = folder
        self.precision = precision
        self.urls = None if settings.shards is None else expand_shards(settings.shards)
        self._store: FeatureStore | None = None
        self._encoded: list[list[EncodedCaption]] = []

    @property
    def store(self) -> FeatureStore:
        """Return this rank's share of the cache, from `setup` on."""
        assert self._store is not None
        return self._store

    @property
    def steps_per_epoch(self) -> int:
        """See `CaptionDataModule`."""
        # Shares are equal to one image. Ranks need not ask each other: the thread that makes batches must not.
        smallest = self.store.total_images // world_size()
        return max(1, smallest * world_size() // self.batch_size)

    def setup(self, stage: str) -> None:
        """Make or complete the cache if shards are given; open and place this rank's share, encode its captions.

        Raises:
            InputError: on all ranks: the batch does not divide by them, or the cache cannot be used by one of them.
        """
        self.local_batch_size()
        if self._store is not None:
            return
        if self.urls is not None:
            build_cache(self.backbone, self.urls, self.folder, self.settings.making, self.device, self.precision)
        here = gather_values(platform.node()).count(platform.node())
        with raise_on_all_ranks():
            store = FeatureStore.open(self.folder, rank(), world_size())
            store.check_backbone(self.backbone)
            store.place(self.device, self.settings.placement, self.settings.verify, here)
        self._store = store
        if self.urls is None:  # else it was said while the cache was made
            self.note_skipped(store.skipped)
        self.skipped |= dict.fromkeys(store.skipped)
        self._encoded = self.encoder.encode_groups(store.captions)
        log.info("%s", self.encoder.statistics)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield a seeded permutation of this rank's images, with one caption and one view each."""
        store = self.store
        generator = generator_of(self.seed, epoch, rank())
        size, steps = self.local_batch_size(), self.steps_per_epoch
        passes = -(-size * steps // len(store))  # more than one only when a batch exceeds the images
        order = torch.cat([torch.randperm(len(store), generator=generator) for _ in range(passes)])
        draws = torch.randint(2**31, (len(order),), generator=generator).tolist()
        views = torch.randint(store.views, (len(order),), generator=generator)
        for step in range(steps):
            part = slice(step * size, (step + 1) * size)
            rows = order[part]
            captions = [
                self._encoded[row][draw % len(self._encoded[row])]
                for row, draw in zip(rows.tolist(), draws[part], strict=True)
            ]
            image_index = None
            if passes > 1:
                rows, image_index = rows.unique(return_inverse=True)
            images = self._images(rows, views[part][: len(rows)])
            yield collate(captions, self.encoder.pad_id, images, image_index=image_index, max_captions=self.micro_batch)

    def _images(self, rows: torch.Tensor, views: torch.Tensor) -> BatchImages:
        if self.store.on_accelerator:  # gathered there, in the step: no copy of the batch waits in its memory
            return CachedRows(rows, views, self.store)
        return CachedFeatures(self.store.rows(rows, views), self.store.normalised)

    def feature_batches(self) -> Iterator[ImageFeatures]:
        """See `CaptionDataModule`."""
        limit = max(1, self.norm_images // world_size())
        chosen = torch.randperm(len(self.store), generator=generator_of(self.seed, 0, rank()))[:limit].sort()[0]
        for rows in chosen.split(BLOCK):
            yield self.store.rows(rows, torch.zeros_like(rows)).features()

    def prepare_features(self, norm: FeatureNorm, fitted: bool) -> None:
        """See `CaptionDataModule`; features in memory become unit vectors at once, others in every step."""
        super().prepare_features(norm, fitted)
        self.store.normalise(norm)
