"""Segmentation sets in their official folder layouts: photo + index mask, labels mapped to class indices."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simzss.concepts.bank import read_entries
from simzss.config import CONF_DIR, load_choice, to_plain
from simzss.data.images import to_rgb
from simzss.errors import InputError

IGNORE = 255


@dataclass(frozen=True)
class BenchmarkConfig:
    """`conf/benchmark`: where photos and masks are below the root, and what the labels mean.

    Args:
        name: of the benchmark, key of the results.
        root: folder of the official download.
        inside: folders to look for below `root` when it is a parent of the set.
        images: folder of photos, below the root.
        masks: folder of masks, below the root.
        image_suffix: end of a photo's file name.
        mask_suffix: end of its mask's file name.
        split: text file with one name a line, below the root or anywhere; null takes every mask.
        num_classes: number of classes without the background.
        classes: file of their plain names, below the configuration folder or, if `./…`, below the root.
        engineered: file with several names for each of the same classes, null for none.
        label_offset: added to mask values to get class indices (without the background class).
        ignore_labels: mask values that do not count.
        background: rule beside the plain names: arguments of `simzss.segmentation.background.Background`, whose
            `words` may also be a file of them below the configuration folder; `with_masks` is the threshold for models
            that were trained with masks, where it is another.
        engineered_background: rule beside the engineered names.
        short_side: short side in pixels that a protocol, by its name, takes for this set.
        official_images: number of images of the official set.
        limit: first so many images, null for all.
        sam: what a protocol, by its name, takes for this set where settings leave it open: `cos_factor` and `parts` of
            `Correlation`, `threshold` of `SamRefinement`.
    """

    name: str
    root: str
    inside: tuple[str, ...]
    images: str
    masks: str
    image_suffix: str
    mask_suffix: str
    split: str | None
    num_classes: int | None
    classes: str
    engineered: str | None
    label_offset: int
    ignore_labels: tuple[int, ...]
    background: dict[str, Any]
    engineered_background: dict[str, Any]
    short_side: dict[str, int]
    official_images: int | None
    limit: int | None = None
    sam: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"benchmark.limit={self.limit} must be at least 1")


@dataclass(frozen=True)
class Example:
    """One photo with its mask (H, W) int64: class indices, 255 where pixels do not count."""

    name: str
    image: Image.Image
    mask: Tensor


class Benchmark:
    """A segmentation set on disk.

    Args:
        config: layout and labels.

    Raises:
        InputError: folder, split or class file missing or unreadable; no masks; a photo without a mask or the reverse.
    """

    def __init__(self, config: BenchmarkConfig) -> None:
        self.config = config
        self.root = self._find_root()
        self.class_groups = self._read_classes(config.classes)
        self.engineered_groups = None if config.engineered is None else self._read_classes(config.engineered)
        self.names = self._read_names()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_labels(self) -> int:
        """Number of mask classes, background included where the set has one."""
        return len(self.class_groups) + (self.config.background.get("kind", "none") != "none")

    def image_path(self, name: str) -> Path:
        """Path of a photo."""
        return self.root / self.config.images / f"{name}{self.config.image_suffix}"

    def mask_path(self, name: str) -> Path:
        """Path of a mask."""
        return self.root / self.config.masks / f"{name}{self.config.mask_suffix}"

    def __getitem__(self, index: int) -> Example:
        name = self.names[index]
        image = to_rgb(self._open(self.image_path(name)))
        # Index masks are palette or grey images: never convert, the stored value is the label.
        labels = np.asarray(self._open(self.mask_path(name))).astype(np.int64)
        if labels.shape != (image.height, image.width):
            raise InputError(f"{self.mask_path(name)} is {labels.shape}, its photo {(image.height, image.width)}")
        return Example(name, image, torch.from_numpy(self._map(labels, name)))

    def _open(self, path: Path) -> Image.Image:
        """A decoded image file in its own mode."""
        try:
            image = Image.open(path)
            image.load()
        except Exception as error:
            # Pillow raises a dozen types on broken files (OSError, SyntaxError, DecompressionBombError …).
            raise InputError(f"benchmark {self.config.name}: {path} cannot be read: {error}") from error
        return image

    def _map(self, labels: np.ndarray, name: str) -> np.ndarray:
        ignored = np.isin(labels, self.config.ignore_labels)
        mapped = labels + self.config.label_offset
        outside = ~ignored & ((mapped < 0) | (mapped >= self.num_labels))
        if outside.any():
            raise InputError(f"{self.mask_path(name)} has label {int(labels[outside][0])}, which is none of the "
                             f"{self.num_labels} classes of {self.config.name}")  # fmt: skip
        mapped[ignored] = IGNORE
        return mapped

    @staticmethod
    def find_root(config: BenchmarkConfig) -> Path | None:
        """The folder of the set, at or below the configured root; None where its photos and masks are not there."""
        root = Path(config.root)
        for candidate in (root, *(root / inside for inside in config.inside)):
            if (candidate / config.images).is_dir() and (candidate / config.masks).is_dir():
                return candidate
        return None

    def _find_root(self) -> Path:
        root = Path(self.config.root)
        if not root.is_dir():
            raise InputError(f"benchmark.root={root} is no folder")
        found = self.find_root(self.config)
        if found is not None:
            return found
        raise InputError(f"benchmark.root={root} is not the {self.config.name} layout: it needs "
                         f"{self.config.images} and {self.config.masks}")  # fmt: skip

    def background(self, engineered: bool = False, with_masks: bool = False) -> dict[str, Any]:
        """The background rule beside the plain or the engineered names, its words read.

        Args:
            engineered: which names.
            with_masks: whether it is for a model that was trained with masks.
        """
        rule = dict(self.config.engineered_background if engineered else self.config.background)
        own = rule.pop("with_masks", None)
        if with_masks and own is not None:
            rule["threshold"] = own
        words = rule.get("words", ())
        if isinstance(words, str):
            words = [word for entry in read_entries(CONF_DIR / words) for word in entry.words]
        return rule | {"words": tuple(words)}

    def _read_classes(self, name: str) -> tuple[tuple[str, ...], ...]:
        path = self.root / name if name.startswith("./") else CONF_DIR / name
        groups = tuple(entry.words for entry in read_entries(path))
        expected = self.config.num_classes
        if expected is not None and len(groups) != expected:
            raise InputError(f"{path} lists {len(groups)} classes, benchmark {self.config.name} has {expected}")
        return groups

    def _read_names(self) -> list[str]:
        """Names of the split, or of the folders; the first `limit` of them have a photo and a mask each."""
        config = self.config
        names = self._found_names() if config.split is None else self._split_names(config.split)
        names = names[: config.limit]
        for path_of in (self.image_path, self.mask_path):
            missing = [name for name in names if not path_of(name).is_file()]
            if missing:
                raise InputError(f"benchmark {config.name}: {path_of(missing[0])} does not exist "
                                 f"({len(missing)} of {len(names)} missing)")  # fmt: skip
        return names

    def _split_names(self, split: str) -> list[str]:
        """Names of a split file, one a line; they may hold spaces."""
        path = self.root / split
        if not path.is_file() and Path(split).is_file():
            path = Path(split)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError as error:
            raise InputError(f"benchmark {self.config.name}: split {path} does not exist") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"benchmark {self.config.name}: split {path} cannot be read: {error}") from error
        names = [name for line in lines if (name := line.strip())]
        if not names:
            raise InputError(f"benchmark {self.config.name}: split {path} names no image")
        return names

    def _found_names(self) -> list[str]:
        """Names of all masks and all photos, so that one without the other is noticed."""
        masks = _names(self.root / self.config.masks, self.config.mask_suffix)
        if not masks:
            raise InputError(f"benchmark {self.config.name}: no masks in {self.root / self.config.masks}")
        return sorted(masks | _names(self.root / self.config.images, self.config.image_suffix))


def open_benchmark(group: str, name: str, changes: Mapping[str, Any]) -> Benchmark:
    """The segmentation set `conf/benchmark/<name>.yaml` for another group of keys than `benchmark`.

    Args:
        group: `benchmark` and `root` of which the user gave, as the errors say.
        name: of the set.
        changes: values in place of the file's.

    Raises:
        InputError: no such set, or see `Benchmark`.
    """
    try:
        chosen = to_plain(load_choice("benchmark", name))
    except InputError as error:
        raise InputError(f"{group}.{error}") from error
    if chosen.pop("task", "segmentation") != "segmentation" or "masks" not in chosen:
        raise InputError(f"{group}.benchmark={name} is no segmentation set")
    try:
        return Benchmark(BenchmarkConfig(**{**chosen, **changes}))
    except InputError as error:
        raise InputError(str(error).replace("benchmark.root=", f"{group}.root=")) from error


def _names(folder: Path, suffix: str) -> set[str]:
    """Names of the files below a folder that end in `suffix`, without it; `city/name` for those in subfolders."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}"))
    return {path.removesuffix(suffix) for path in paths}
