"""What training reads: batches from shards, either images as they stream by or features computed once and kept."""

import hashlib
import json
import logging
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from simzss.concepts.bank import ConceptBank
from simzss.data.batch import Batch, CaptionEncoder, EncodedCaption, collate, summarise_skipped
from simzss.data.features import CACHE_VERSION, FeatureSet, FeatureSetBuilder
from simzss.data.shards import Skipped, count_samples, expand_shards, read_indexes, shard_order, unfinished
from simzss.data.stream import OrderedBlocks, TrainingStream
from simzss.data.transforms import RandomCrop, WholeImage
from simzss.distributed import failing_together, gather_values, minimum, rank, world_size
from simzss.errors import InputError
from simzss.models.features import ImageFeatures
from simzss.models.simzss import SimZSS

log = logging.getLogger(__name__)

CACHES = ("none", "memory")
# Images through the backbone at a time while caching, at most. Few: on a CPU activations above 32 MB are mapped and
# unmapped by the allocator at every layer, which takes half the time.
_BLOCK = 16


class CaptionDataModule(pl.LightningDataModule):
    """Batches of images (or their cached features) with one caption each.

    An epoch is as many steps as the images fill global batches, at least one; each image comes with a fresh random
    caption. Every rank makes the same number of steps.

    Args:
        model: whose backbone and tokenizer the data is prepared for.
        bank: concepts that count, None for none.
        shards: glob or brace pattern, or a list of them.
        batch_size: global batch, over all ranks.
        num_workers: decoding processes per rank.
        cache: `none` streams images through random crops; `memory` computes the backbone's features of the whole
            image once and keeps them in host memory for the run.
        cache_dir: folder to keep the cache in from run to run, or None.
        shuffle: samples in the shuffle buffer of the stream.
        min_crop: smallest share of the image that a random crop keeps.
        norm_images: images from which centring or whitening takes its statistics.
        seed: of shuffling, crops and the choice of captions.
        precision: resolved arithmetic of the cached features.
    """

    def __init__(
        self,
        model: SimZSS,
        bank: ConceptBank | None,
        *,
        shards: str | list[str],
        batch_size: int,
        num_workers: int,
        cache: str,
        cache_dir: str | None,
        shuffle: int,
        min_crop: float,
        norm_images: int,
        seed: int,
        precision: str,
    ) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.encoder = CaptionEncoder(model.text_encoder, bank)
        self.urls = expand_shards(shards)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.cache = cache
        self.cache_dir = cache_dir
        self.shuffle = shuffle
        self.min_crop = min_crop
        self.norm_images = norm_images
        self.seed = seed
        self.precision = precision
        indexes = read_indexes(self.urls)
        self.unfinished = unfinished(indexes)
        self.samples = count_samples(self.urls, indexes)
        if self.samples == 0:
            raise InputError(f"data.shards={shards} holds no sample")
        self.skipped: dict[Skipped, None] = {}  # an ordered set: a stream meets the same ones in every epoch
        self.features: FeatureSet | None = None
        self._encoded: list[list[EncodedCaption]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, equal on all ranks."""
        samples = self.samples if self.features is None else minimum(len(self.features)) * world_size()
        return max(1, samples // self.batch_size)

    def local_batch_size(self) -> int:
        """Images of a batch on one rank.

        Raises:
            InputError: the global batch does not divide by the ranks.
        """
        if self.batch_size % world_size():
            raise InputError(f"data.batch_size={self.batch_size} does not divide by {world_size()} processes")
        return self.batch_size // world_size()

    def setup(self, stage: str) -> None:
        """Compute or load the features when they are to be kept.

        Raises:
            InputError: on all ranks: the batch does not divide by them, or they see different shards.
        """
        self.local_batch_size()
        self._require_same_shards()
        if self.unfinished and rank() == 0:  # said here, since processes know their rank by now: not once by each
            log.warning("%s", self.unfinished)
        if self.cache == "memory" and self.features is None:
            assert self.trainer is not None
            with failing_together():
                self.features = self._cached_features(self.trainer.strategy.root_device)
            self._encoded = [self.encoder.encode(captions) for captions in self.features.captions]
            log.info("%s", self.encoder.statistics)

    def feature_batches(self, device: torch.device) -> Iterator[ImageFeatures]:
        """Raw features of this rank's share of `norm_images` images, for centring and whitening."""
        limit = max(1, self.norm_images // world_size())
        if self.features is not None:
            chosen = torch.randperm(len(self.features), generator=_generator(self.seed, 0, rank()))[:limit].sort()[0]
            for rows in chosen.split(_BLOCK):
                yield self.features.rows(rows)
            return
        seen = 0
        # Not the first shards of the list: these may all come from one of several sets.
        for block in self._blocks(list(islice(shard_order(self.urls, self.seed, 0, 0, 1), len(self.urls)))):
            if len(block.image):
                yield self._features_of(block.image, device)
            seen += len(block.image)
            if seen >= limit:
                return

    def train_dataloader(self) -> "DataLoader | LimitedLoader":
        """Loader of one epoch; Lightning asks anew each epoch."""
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        dataset: IterableDataset[Batch]
        if self.features is not None:
            dataset = CachedBatches(self, epoch)
            return DataLoader(dataset, batch_size=None)
        dataset = TrainingStream(
            self.urls,
            RandomCrop(self.backbone.image_size, self.min_crop),
            self.encoder,
            self.local_batch_size(),
            self.shuffle,
            self.seed,
            epoch,
        )
        return LimitedLoader(self._loader(dataset), self.steps_per_epoch)

    def on_skipped(self, skipped: tuple[Skipped, ...]) -> None:
        """Note samples that could not be used, each once."""
        if skipped and not self.skipped:
            log.warning("%s", summarise_skipped(skipped))
        self.skipped |= dict.fromkeys(skipped)

    def _loader(self, dataset: IterableDataset) -> DataLoader:
        # The generator keeps the loader from drawing its worker seed from the run's own random stream.
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=_generator(self.seed, 0, rank()),
            multiprocessing_context="fork" if self.num_workers else None,
        )

    def _block_size(self) -> int:
        """Images through the backbone at a time; fewer where few images are dealt to many ranks: each gets some."""
        return max(1, min(_BLOCK, self.samples // world_size()))

    def _blocks(self, urls: Sequence[str]) -> DataLoader:
        return self._loader(OrderedBlocks(urls, WholeImage(self.backbone.image_size), self._block_size()))

    def _features_of(self, images: torch.Tensor, device: torch.device) -> ImageFeatures:
        return self.backbone.to(device)(images.to(device, non_blocking=True))

    def _cached_features(self, device: torch.device) -> FeatureSet:
        """The kept features, from the file of an earlier run where there is one."""
        if self.cache_dir is None:
            return self._compute_features(device)
        fingerprint = self._fingerprint()
        path = Path(self.cache_dir) / f"{self.backbone.name}-{fingerprint}.safetensors"
        if path.is_file():
            log.info("features from %s", path)
            features = FeatureSet.load(path, fingerprint)
            self.on_skipped(features.skipped)
            return features
        _require_writable(path.parent)
        features = self._compute_features(device)
        try:
            features.save(path, fingerprint)
        except InputError as error:
            log.warning("%s; this run goes on without it", error)
        return features

    def _compute_features(self, device: torch.device) -> FeatureSet:
        dtype = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32
        log.info("computing features of %d images with %s, once for the run", self.samples, self.backbone.name)
        size = self._block_size()
        share = -(-self.samples // (size * world_size())) * size  # blocks are dealt to the ranks in turn
        builder = FeatureSetBuilder(share, dtype)
        progress = _every_tenth(self.samples)
        for block in self._blocks(self.urls):
            self.on_skipped(block.skipped)
            builder.skip(block.skipped)
            if len(block.image):
                builder.add(self._features_of(block.image, device), block.captions)
            progress(builder.count * world_size())
        return builder.finish()

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

    def _fingerprint(self) -> str:
        """Hash of all that a kept file depends on: the whole shards, which are smaller than it, and the backbone."""
        backbone = self.backbone
        facts: list[Any] = [CACHE_VERSION, backbone.fingerprint, backbone.timm_name, backbone.features]
        facts += [backbone.project, backbone.image_size, backbone.mean.flatten().tolist()]
        facts += [backbone.std.flatten().tolist(), self.precision, rank(), world_size()]
        facts += [[Path(url).name, _digest(url)] for url in self.urls]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class LimitedLoader:
    """The first batches of an endless loader."""

    def __init__(self, loader: DataLoader, batches: int) -> None:
        self.loader = loader
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        return islice(iter(self.loader), self.batches)


class CachedBatches(IterableDataset[Batch]):
    """One epoch of batches from kept features: a seeded permutation of this rank's images, one caption each."""

    def __init__(self, data: CaptionDataModule, epoch: int) -> None:
        self.data = data
        self.epoch = epoch

    def __len__(self) -> int:
        return self.data.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        data = self.data
        assert data.features is not None
        generator = _generator(data.seed, self.epoch, rank())
        size, steps = data.local_batch_size(), data.steps_per_epoch
        passes = -(-size * steps // len(data.features))  # more than one only when a batch exceeds the images
        order = torch.cat([torch.randperm(len(data.features), generator=generator) for _ in range(passes)])
        draws = torch.randint(2**31, (len(order),), generator=generator).tolist()
        for step in range(steps):
            rows = order[step * size : (step + 1) * size]
            captions = []
            for row, draw in zip(rows.tolist(), draws[step * size : (step + 1) * size], strict=True):
                encoded = data._encoded[row]
                captions.append(encoded[draw % len(encoded)])
            yield collate(captions, data.encoder.pad_id, features=data.features.rows(rows))


def _generator(seed: int, epoch: int, rank_: int) -> torch.Generator:
    """Random numbers that depend on nothing but these three."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{rank_}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _digest(url: str) -> str:
    """Hash of a shard's bytes."""
    try:
        with Path(url).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"data.shards: {url} cannot be read: {error.strerror or error}") from error


def _require_writable(folder: Path) -> None:
    """Make the folder of the cache and try it: features may take hours before they are written.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"data.cache_dir={folder} is no folder to write to: {error.strerror or error}") from error


def _every_tenth(total: int) -> Callable[[int], None]:
    """A function that logs each tenth of `total` as it is passed."""
    state = {"next": total / 10}

    def report(done: int) -> None:
        if done >= state["next"]:
            log.info("%d of %d images", done, total)
            state["next"] = (done // (total / 10) + 1) * total / 10

    return report
