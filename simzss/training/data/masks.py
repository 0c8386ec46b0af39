"""Training on masks: random crops of photos with their labels, from any segmentation folder."""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision.transforms import v2

from simzss.atomic import atomic_write
from simzss.data.benchmark import IGNORE, Benchmark, open_benchmark
from simzss.distributed import rank, world_size
from simzss.errors import ConfigError, DataError, InputError, nearest
from simzss.program import end_with_lost_batch
from simzss.training.settings import MasksSettings

log = logging.getLogger(__name__)

_GREY = (124, 116, 104)  # where a crop reaches beyond its photo: about the mean colour of photos


class MaskBatch(NamedTuple):
    """B crops, or one without the batch dimension.

    Attributes:
        images: (B, 3, S, S) uint8.
        labels: (B, S, S) uint8: a class, K for pixels of none of the K classes, or IGNORE.
    """

    images: Tensor
    labels: Tensor


class MaskDataset(Dataset["MaskBatch | InputError"]):
    """Random crops of the photos of a benchmark, with the labels that masks teach.

    Args:
        benchmark: photos and masks.
        size: S, side of a crop in pixels.
        settings: scales, flip and excluded classes.

    Raises:
        InputError: an excluded class that the benchmark does not have, no class left, or too many classes.
    """

    def __init__(self, benchmark: Benchmark, size: int, settings: MasksSettings) -> None:
        self.benchmark, self.size, self.settings = benchmark, size, settings
        excluded, name = settings.exclude_classes, benchmark.settings.name
        known = [group[0] for group in benchmark.class_groups]
        for word in excluded:
            if word not in known:
                raise ConfigError(f"masks.exclude_classes: {name} has no class {word!r}; {nearest(word, known)}")
        self.class_groups = tuple(group for group in benchmark.class_groups if group[0] not in excluded)
        if not self.class_groups:
            raise ConfigError("masks.exclude_classes leaves no class to train on")
        if len(known) >= IGNORE:
            raise DataError(f"benchmark {name} has {len(known)} classes; {IGNORE - 1} fit a mask")
        self._table = self._training_labels(known, excluded)

    def _training_labels(self, known: Sequence[str], excluded: Sequence[str]) -> np.ndarray:
        """Tabulate the label of each of the 256 values of a benchmark's mask."""
        table = np.full(256, IGNORE, dtype=np.uint8)
        background = self.benchmark.num_labels - len(known)
        table[:background] = len(self.class_groups)
        kept = [index for index, name in enumerate(known) if name not in excluded]
        for label, index in enumerate(kept):
            table[background + index] = label
        return table

    def __getitem__(self, item: tuple[int, int]) -> "MaskBatch | InputError":
        """Return a crop by index and seed; errors are returned: a worker's own traceback would hide their one line."""
        index, seed = item
        try:
            return self.crop(index, torch.Generator().manual_seed(seed))
        except InputError as error:
            return error

    def crop(self, index: int, generator: torch.Generator) -> MaskBatch:
        """Crop a photo at a random scale and position.

        Args:
            index: of the benchmark's photos.
            generator: of all that is random.

        Raises:
            DataError: the photo or its mask cannot be read.
        """
        example = self.benchmark[index]
        labels = Image.fromarray(self._table[example.mask.numpy().astype(np.uint8)])
        scale, across, down, flip = torch.rand(4, generator=generator).tolist()
        low, high = self.settings.scales
        factor = (low + (high - low) * scale) * self.size / min(example.image.size)
        box = (self.size, factor, (across, down))
        image = _crop(example.image, *box, _GREY, Image.Resampling.BICUBIC)
        labels = _crop(labels, *box, IGNORE, Image.Resampling.NEAREST)
        pair = MaskBatch(v2.functional.pil_to_tensor(image), v2.functional.pil_to_tensor(labels)[0])
        return MaskBatch(*(part.flip(-1) for part in pair)) if self.settings.flip and flip < 0.5 else pair


def _crop(
    picture: Image.Image,
    size: int,
    factor: float,
    position: tuple[float, float],
    fill: Any,
    method: Image.Resampling,
) -> Image.Image:
    """Crop a square of `size` out of a picture enlarged by `factor`, at a position across and down in 0..1.

    Along a side where the enlarged picture is shorter, it lies within the square, and the rest is `fill`.
    """
    shown, offsets, starts, ends = [], [], [], []
    for length, draw in zip(picture.size, position, strict=True):
        enlarged = max(1, round(length * factor))
        shown.append(min(size, enlarged))
        starts.append(int(draw * (max(0, enlarged - size) + 1)) * length / enlarged)
        ends.append(min(length, starts[-1] + shown[-1] * length / enlarged))
        offsets.append(int(draw * (max(0, size - enlarged) + 1)))
    part = picture.resize((shown[0], shown[1]), method, box=(starts[0], starts[1], ends[0], ends[1]))
    canvas = Image.new(picture.mode, (size, size), fill)
    canvas.paste(part, (offsets[0], offsets[1]))
    return canvas


class MaskDataModule(pl.LightningDataModule):
    """Batches of crops; every photo once an epoch, and some again where they do not fill the last batch.

    Args:
        dataset: photos and classes.
        seed: of the order and the crops.
    """

    def __init__(self, dataset: MaskDataset, seed: int) -> None:
        super().__init__()
        self.dataset = dataset
        self.settings = dataset.settings
        self._sampler = _CropSampler(len(dataset.benchmark), self.settings.batch_size, seed)
        self._loader: DataLoader[Any] | None = None

    @property
    def local_batch_size(self) -> int:
        """Return the number of crops of a step on one rank.

        Raises:
            ConfigError: the global batch does not divide by the ranks.
        """
        size, ranks = self.settings.batch_size, world_size()
        if size % ranks:
            raise ConfigError(f"masks.batch_size={size} does not divide by {ranks} processes")
        return size // ranks

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of one epoch, for which Lightning asks anew each epoch; its workers stay."""
        assert self.trainer is not None
        self._sampler.epoch = self.trainer.current_epoch
        if self._loader is None:
            self._loader = DataLoader(
                self.dataset,
                sampler=self._sampler,
                batch_size=self.local_batch_size,
                collate_fn=_collate,
                num_workers=self.settings.num_workers,
                persistent_workers=self.settings.num_workers > 0,
                pin_memory=torch.accelerator.is_available(),
                worker_init_fn=end_with_lost_batch,
                generator=torch.Generator(),  # a draw from the global one would tell a resumed run from another
            )
        return self._loader

    def teardown(self, stage: str) -> None:
        """End the workers."""
        self._loader = None

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Raise the error of a worker."""
        if isinstance(batch, InputError):
            raise batch
        return batch


class _CropSampler(Sampler[tuple[int, int]]):
    """This rank's crops of an epoch, batch after batch, as (photo, seed): global batches do not depend on the number
    of ranks."""  # fmt: skip

    def __init__(self, photos: int, batch_size: int, seed: int) -> None:
        self.photos, self.batch_size, self.seed = photos, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.photos / self.batch_size) * self.batch_size // world_size()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self._seed_of(0))
        photos = torch.randperm(self.photos, generator=generator).tolist()
        for position in range(rank(), len(self) * world_size(), world_size()):
            yield photos[position % self.photos], self._seed_of(1 + position)

    def _seed_of(self, number: int) -> int:
        return ((self.seed * 1_000_003 + self.epoch) * 16_777_259 + number) % 2**63


def _collate(crops: "list[MaskBatch | InputError]") -> Any:
    return next((crop for crop in crops if isinstance(crop, InputError)), None) or default_collate(crops)


def open_masks(settings: MasksSettings, size: int, seed: int) -> tuple[MaskDataset, list[str]]:
    """Open the photos and masks to train on.

    Args:
        settings: where they are, and the share that is held out.
        size: side of a crop in pixels.
        seed: of the photos that are held out.

    Returns:
        The photos to train on, and the names of those held out.

    Raises:
        InputError: no such set, or one that cannot be read.
    """
    own = {"root": settings.root, "images": settings.images, "masks": settings.masks, "split": settings.split}
    changes: dict[str, Any] = {key: value for key, value in own.items() if value is not None}
    if settings.images is not None and settings.split is None:
        changes["split"] = None  # the benchmark's names photos of its own folders
    benchmark = open_benchmark("masks", settings.benchmark, changes)
    trained, held_out = hold_out(benchmark.names, settings.held_out, seed)
    benchmark.names = trained[: settings.limit]
    dataset = MaskDataset(benchmark, size, settings)
    log.info("masks: %d photos of %s, %d held out, %d classes", len(benchmark), settings.benchmark, len(held_out),
             len(dataset.class_groups))  # fmt: skip
    return dataset, held_out


def hold_out(names: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Divide names into those to train on and those held out at random, each in the order given.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    count = round(len(names) * share)
    if count >= len(names):
        raise ConfigError(f"masks.held_out={share} leaves none of {len(names)} photos to train on")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    left_out = set(order[:count])
    parts = [[name for index, name in enumerate(names) if (index in left_out) == held] for held in (False, True)]
    return parts[0], parts[1]


def write_split(folder: Path, trained: Sequence[str], held_out: Sequence[str]) -> None:
    """Write `train.txt` and `held_out.txt`, one name a line, as a benchmark's `split` reads them.

    Raises:
        ConfigError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, names in (("train.txt", trained), ("held_out.txt", held_out)):
            atomic_write(folder / name, "".join(f"{line}\n" for line in names).encode())
    except OSError as error:
        raise ConfigError(f"output_dir={folder} cannot be written: {error}") from error
