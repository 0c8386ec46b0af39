"""Training on masks: crops of photos with their labels, from any segmentation folder."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from simzss.data.benchmark import IGNORE, Benchmark
from simzss.distributed import rank, world_size
from simzss.errors import InputError, nearest

_GREY = (124, 116, 104)  # where a crop reaches beyond its photo: about the mean colour of photos


@dataclass(frozen=True)
class MasksConfig:
    """`conf/masks`: which masks train a head.

    Args:
        benchmark: a set of `conf/benchmark`, whose layout and classes they have.
        root: its folder.
        images: folder of photos below the root, in place of the benchmark's, which are to be measured on.
        masks: folder of masks, likewise.
        split: text file with one name a line, below the root or anywhere; None: the benchmark's.
        held_out: share of its photos that are left out, for measuring; drawn by the seed.
        photos: first so many of the rest; None for all.
        hidden: classes, by their first name, whose pixels do not count.
        batch_size: crops of a step, over all ranks.
        num_workers: decoding processes per rank.
        scales: least and most of the short side of a photo beside that of a crop: large-scale jitter (Ghiasi et al.
            2021). Where the photo is smaller than the crop the rest does not count.
        flip: whether half of the crops are mirrored.
    """

    benchmark: str
    root: str
    images: str | None
    masks: str | None
    split: str | None
    held_out: float
    photos: int | None
    hidden: tuple[str, ...]
    batch_size: int
    num_workers: int
    scales: tuple[float, float]
    flip: bool

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise InputError(f"masks.held_out={self.held_out} must be 0 to less than 1")
        for name, least in (("batch_size", 1), ("num_workers", 0), ("photos", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"masks.{name}={value} must be at least {least}")
        if len(self.scales) != 2 or not 0 < self.scales[0] <= self.scales[1] < math.inf:
            raise InputError(f"masks.scales={list(self.scales)} must be two numbers above 0, the lower one first")

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "MasksConfig":
        """From a configuration."""
        return cls(**{**values, "hidden": tuple(values["hidden"]), "scales": tuple(values["scales"])})


@dataclass(frozen=True)
class MaskBatch:
    """B crops: `images` (B, 3, S, S) uint8, `labels` (B, S, S) uint8: a class, K for pixels of none of them, IGNORE."""

    images: Tensor
    labels: Tensor

    def pin_memory(self) -> "MaskBatch":
        """The batch in page-locked memory; torch's loader looks for this method."""
        return MaskBatch(self.images.pin_memory(), self.labels.pin_memory())


def divide(names: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Names to train on and names held out, each in the order given; which ones depends on names, share and seed.

    Raises:
        InputError: nothing would be left to train on.
    """
    count = round(len(names) * share)
    if count >= len(names):
        raise InputError(f"masks.held_out={share} leaves none of {len(names)} photos to train on")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    left_out = set(order[:count])
    parts = [[name for index, name in enumerate(names) if (index in left_out) == held] for held in (False, True)]
    return parts[0], parts[1]


class TrainingMasks:
    """The classes that masks teach, and crops with their labels.

    Args:
        benchmark: photos and masks.
        hidden: classes by their first name, whose pixels do not count.

    Raises:
        InputError: a hidden class that the benchmark has not, or no class left.
    """

    def __init__(self, benchmark: Benchmark, hidden: Sequence[str] = ()) -> None:
        self.benchmark = benchmark
        known = [group[0] for group in benchmark.class_groups]
        for name in hidden:
            if name not in known:
                raise InputError(f"masks.hidden: {benchmark.config.name} has no class {name!r}; {nearest(name, known)}")
        self.class_groups = tuple(group for group in benchmark.class_groups if group[0] not in hidden)
        if not self.class_groups:
            raise InputError("masks.hidden leaves no class to train on")
        if len(known) >= IGNORE:
            raise InputError(f"benchmark {benchmark.config.name} has {len(known)} classes; {IGNORE - 1} fit a mask")
        self._table = self._labels_of(known, hidden)

    @property
    def none(self) -> int:
        """Label of pixels that count and belong to no class: a set's background."""
        return len(self.class_groups)

    def _labels_of(self, known: Sequence[str], hidden: Sequence[str]) -> np.ndarray:
        """(256) label of each value of a benchmark's mask."""
        table = np.full(256, IGNORE, dtype=np.uint8)
        background = self.benchmark.num_labels - len(known)
        table[:background] = self.none
        kept = [index for index, name in enumerate(known) if name not in hidden]
        for label, index in enumerate(kept):
            table[background + index] = label
        return table

    def crop(self, index: int, size: int, config: MasksConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random crop of one photo.

        Args:
            index: of the benchmark's photos.
            size: S, side of the crop in pixels.
            config: scales and flip.
            generator: of all that is random.

        Returns:
            (3, S, S) uint8 and labels (S, S) uint8.
        """
        example = self.benchmark[index]
        labels = Image.fromarray(self._table[example.mask.numpy().astype(np.uint8)])
        draws = torch.rand(4, generator=generator).tolist()
        low, high = config.scales
        factor = (low + (high - low) * draws[0]) * size / min(example.image.size)
        image, labels = (
            _cropped(picture, size, factor, draws[1], draws[2], fill, method)
            for picture, fill, method in (
                (example.image, _GREY, Image.Resampling.BICUBIC),
                (labels, IGNORE, Image.Resampling.NEAREST),
            )
        )
        pair = (v2.functional.pil_to_tensor(image), v2.functional.pil_to_tensor(labels)[0])
        return (pair[0].flip(-1), pair[1].flip(-1)) if config.flip and draws[3] < 0.5 else pair


def _cropped(
    picture: Image.Image, size: int, factor: float, across: float, down: float, fill: Any, method: Image.Resampling
) -> Image.Image:
    """A square of `size` out of a picture enlarged by `factor`, at a place given by two numbers in 0..1.

    Along a side where the enlarged picture is shorter, it lies within the square, and the rest is `fill`.
    """
    shown, offsets, starts = [], [], []
    for length, draw in zip(picture.size, (across, down), strict=True):
        enlarged = max(1, round(length * factor))
        shown.append(min(size, enlarged))
        starts.append(int(draw * (max(0, enlarged - size) + 1)) * length / enlarged)
        offsets.append(int(draw * (max(0, size - enlarged) + 1)))
    ends = [
        min(length, start + pixels * length / max(1, round(length * factor)))
        for length, start, pixels in zip(picture.size, starts, shown, strict=True)
    ]
    part = picture.resize((shown[0], shown[1]), method, box=(starts[0], starts[1], ends[0], ends[1]))
    canvas = Image.new(picture.mode, (size, size), fill)
    canvas.paste(part, (offsets[0], offsets[1]))
    return canvas


class MaskData(pl.LightningDataModule):
    """Batches of crops; every photo once an epoch, and some again where they do not fill the last batch.

    Args:
        masks: photos and classes.
        size: side of a crop in pixels.
        config: the group `masks`.
        seed: of the order and the crops.
    """

    def __init__(self, masks: TrainingMasks, size: int, config: MasksConfig, seed: int) -> None:
        super().__init__()
        self.masks = masks
        self.size = size
        self.config = config
        self._order = _Order(len(masks.benchmark), config.batch_size, seed)
        self._loader: DataLoader[Any] | None = None

    @property
    def local_batch_size(self) -> int:
        """Crops of a step on one rank.

        Raises:
            InputError: the global batch does not divide by the ranks.
        """
        if self.config.batch_size % world_size():
            raise InputError(f"masks.batch_size={self.config.batch_size} does not divide by {world_size()} processes")
        return self.config.batch_size // world_size()

    def train_dataloader(self) -> DataLoader[Any]:
        """Loader of one epoch; Lightning asks anew each epoch. Its workers stay."""
        assert self.trainer is not None
        self._order.epoch = self.trainer.current_epoch
        if self._loader is None:
            self._loader = DataLoader(
                _Crops(self.masks, self.size, self.config),
                sampler=self._order,
                batch_size=self.local_batch_size,
                collate_fn=_collate,
                num_workers=self.config.num_workers,
                persistent_workers=self.config.num_workers > 0,
                pin_memory=torch.accelerator.is_available(),
                generator=torch.Generator(),  # a draw from the global one would tell a resumed run from another
            )
        return self._loader

    def teardown(self, stage: str) -> None:
        """Let the workers go."""
        self._loader = None

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Raise what went wrong in a worker, in its own words."""
        if isinstance(batch, InputError):
            raise batch
        return batch

    def transfer_batch_to_device(self, batch: MaskBatch, device: torch.device, dataloader_idx: int) -> MaskBatch:
        """The batch on the device."""
        return MaskBatch(*(part.to(device, non_blocking=True) for part in (batch.images, batch.labels)))


class _Order(Sampler[tuple[int, int]]):
    """This rank's crops of an epoch, batch after batch, as (photo, seed): global batches do not depend on the number
    of ranks."""  # fmt: skip

    def __init__(self, photos: int, batch_size: int, seed: int) -> None:
        self.photos, self.batch_size, self.seed = photos, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.photos / self.batch_size) * self.batch_size // world_size()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(_seed(self.seed, self.epoch, 0))
        photos = torch.randperm(self.photos, generator=generator).tolist()
        for place in range(rank(), len(self) * world_size(), world_size()):
            yield photos[place % self.photos], _seed(self.seed, self.epoch, 1 + place)


class _Crops(Dataset["tuple[Tensor, Tensor] | InputError"]):
    def __init__(self, masks: TrainingMasks, size: int, config: MasksConfig) -> None:
        self.masks, self.size, self.config = masks, size, config

    def __getitem__(self, item: tuple[int, int]) -> "tuple[Tensor, Tensor] | InputError":
        photo, seed = item
        try:
            return self.masks.crop(photo, self.size, self.config, torch.Generator().manual_seed(seed))
        except InputError as error:
            return error


def _collate(crops: "list[tuple[Tensor, Tensor] | InputError]") -> "MaskBatch | InputError":
    found = []
    for crop in crops:
        if isinstance(crop, InputError):
            return crop
        found.append(crop)
    images, labels = zip(*found, strict=True)
    return MaskBatch(torch.stack(images), torch.stack(labels))


def _seed(seed: int, epoch: int, number: int) -> int:
    return ((seed * 1_000_003 + epoch) * 16_777_259 + number) % 2**63


def write_split(folder: Path, trained: Sequence[str], held_out: Sequence[str]) -> None:
    """Write `train.txt` and `held_out.txt`, one name a line, as a benchmark's `split` reads them.

    Raises:
        InputError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, names in (("train.txt", trained), ("held_out.txt", held_out)):
            (folder / name).write_text("".join(f"{line}\n" for line in names), encoding="utf-8")
    except OSError as error:
        raise InputError(f"output_dir={folder} cannot be written: {error}") from error
