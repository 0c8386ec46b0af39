"""Batches from a cache of features: every image once an epoch, with a fresh caption and view each time."""

import logging
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from simzss.concepts.bank import ConceptBank
from simzss.data.shards import expand_shards
from simzss.distributed import failing_together, gather_values, rank, world_size
from simzss.features.build import build_cache
from simzss.features.settings import CacheSettings
from simzss.features.store import FeatureStore
from simzss.models.feature_norm import FeatureNorm
from simzss.models.features import ImageFeatures
from simzss.models.simzss import SimZSS
from simzss.training.data.batch import Batch, collate
from simzss.training.data.datamodule import BLOCK, CaptionData, generator_of
from simzss.training.data.encoding import EncodedCaption

log = logging.getLogger(__name__)

# Images whose features become unit vectors at a time: in float32 they take many times the memory they are kept in.
_IMAGES = 1024


class CachedData(CaptionData):
    """Features that `simzss cache` kept, on the device, in host memory or in the mapped files.

    Args:
        model: see `CaptionData`, as the others that are not here.
        bank: see there.
        features: folder of the cache.
        placement: `auto`, `device`, `host` or `mapped`.
        verify: compare every file with its checksum.
        shards: make the cache from these first, or what is missing of it; None: it must be complete.
        settings: how it is made then.
        precision: of the arithmetic then.

    Raises:
        InputError: no complete cache, or one of another backbone or transform.
    """

    def __init__(
        self,
        model: SimZSS,
        bank: ConceptBank | None,
        *,
        features: str | Path,
        batch_size: int,
        placement: str,
        verify: bool,
        shards: str | list[str] | None,
        settings: CacheSettings,
        precision: str,
        norm_images: int,
        seed: int,
        micro_batch: int | None,
    ) -> None:
        super().__init__(
            model, bank, batch_size=batch_size, norm_images=norm_images, seed=seed, micro_batch=micro_batch
        )
        self.folder = Path(features)
        self.placement = placement
        self.verify = verify
        self.urls = None if shards is None else expand_shards(shards)
        self.settings = settings
        self.precision = precision
        self._store: FeatureStore | None = None
        self._encoded: list[list[EncodedCaption]] = []

    @property
    def store(self) -> FeatureStore:
        """This rank's share of the cache, from `setup` on."""
        assert self._store is not None
        return self._store

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, equal on all ranks."""
        # Shares are equal to one image. Ranks need not ask each other: the thread that makes batches must not.
        smallest = self.store.total_images // world_size()
        return max(1, smallest * world_size() // self.batch_size)

    def setup(self, stage: str) -> None:
        """Make the cache if that is asked for; open this rank's share, put it where it fits, encode its captions.

        Raises:
            InputError: on all ranks: the batch does not divide by them, or the cache cannot be used by one of them.
        """
        self.local_batch_size()
        if self._store is not None:
            return
        if self.urls is not None:
            build_cache(self.backbone, self.urls, self.folder, self.settings, self.device, self.precision)
        here = gather_values(platform.node()).count(platform.node())
        with failing_together():
            store = FeatureStore.open(self.folder, rank(), world_size())
            store.check_backbone(self.backbone)
            store.place(self.device, self.placement, self.verify, here)
        self._store = store
        if self.urls is None:  # else it was said while the cache was made
            self.on_skipped(store.skipped)
        self.skipped |= dict.fromkeys(store.skipped)
        self._encoded = self.encoder.encode_groups(store.captions)
        log.info("%s", self.encoder.statistics)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """A seeded permutation of this rank's images, one caption and one view each."""
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
            image_row = None
            if passes > 1:
                rows, image_row = rows.unique(return_inverse=True)
            yield self._batch(captions, rows, views[part][: len(rows)], image_row)

    def _batch(
        self, captions: list[EncodedCaption], rows: torch.Tensor, views: torch.Tensor, image_row: torch.Tensor | None
    ) -> Batch:
        options: dict[str, Any] = {"image_row": image_row, "most_captions": self.micro_batch}
        if self.store.on_accelerator:  # gathered there, in the step: no copy of the batch waits in its memory
            return collate(captions, self.encoder.pad_id, row=rows, view=views, **options)
        return collate(captions, self.encoder.pad_id, features=self.store.rows(rows, views), **options)

    def feature_batches(self) -> Iterator[ImageFeatures]:
        """Raw features of this rank's share of `norm_images` images."""
        limit = max(1, self.norm_images // world_size())
        chosen = torch.randperm(len(self.store), generator=generator_of(self.seed, 0, rank()))[:limit].sort()[0]
        for rows in chosen.split(BLOCK):
            yield self.store.rows(rows, torch.zeros_like(rows)).features()

    def on_norm_fitted(self, norm: FeatureNorm) -> None:
        """Make unit vectors of all features at once, where they are in memory."""
        self.store.normalise(norm)

    def features(self, batch: Batch, norm: FeatureNorm) -> ImageFeatures:
        """Unit features, in the type in which the cache keeps them if that is a float type."""
        if batch.features is not None:
            kept = batch.features
        else:
            assert batch.row is not None and batch.view is not None
            kept = self.store.rows(batch.row, batch.view)
        parts = []
        for part in kept.split(_IMAGES):
            raw = part.features()
            unit = raw if self.store.normalised else norm(raw)
            parts.append(ImageFeatures(unit.cls.float(), unit.patches.to(kept.cls.dtype), kept.grid))
        return ImageFeatures(torch.cat([part.cls for part in parts]), torch.cat([p.patches for p in parts]), kept.grid)
