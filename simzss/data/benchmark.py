"""Segmentation sets in their official folder layouts: photo + index mask, labels mapped to class indices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simzss.concepts.bank import read_entries
from simzss.data.images import open_image, to_rgb
from simzss.data.names import checked_name
from simzss.data.settings import Background, BenchmarkSettings, BenchmarksSettings
from simzss.errors import ConfigError, DataError, InputError, nearest
from simzss.settings.compose import choices, find_file, load_choice

Read = TypeVar("Read")

IGNORE = 255
"""Label of pixels that do not count."""


@dataclass(frozen=True)
class Example:
    """One photo with its mask (H, W) int64: class indices, 255 where pixels do not count."""

    name: str
    image: Image.Image
    mask: Tensor


class Benchmark:
    """A segmentation set on disk.

    Args:
        settings: layout and labels.
        key: of these settings, for the messages.

    Attributes:
        root: folder of the set.
        class_groups: names of each class, background excluded.
        engineered_groups: engineered names of the same classes; None without.
        names: names of the images.

    Raises:
        DataError: folder or split missing or unreadable; no masks; a photo without a mask or the reverse.
        InputError: class names missing, or another number of them than the set has.
    """

    def __init__(self, settings: BenchmarkSettings, key: str = "benchmark") -> None:
        self.settings = settings
        self._key = key
        self.root = self._find_root()
        self.class_groups = self._class_groups("classes", settings.num_classes)
        self.engineered_groups = None
        if settings.engineered is not None:
            self.engineered_groups = self._class_groups("engineered", len(self.class_groups))
        self.names = self._read_names()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_labels(self) -> int:
        """Return the number of mask classes, background included where the set has one."""
        return len(self.class_groups) + self.settings.background.present

    def image_path(self, name: str) -> Path:
        """Return the path of a photo."""
        return self.root / self.settings.images / f"{name}{self.settings.image_suffix}"

    def mask_path(self, name: str) -> Path:
        """Return the path of a mask."""
        return self.root / self.settings.masks / f"{name}{self.settings.mask_suffix}"

    def background(self, engineered: bool = False, with_masks: bool = False) -> Background:
        """Return the background rule beside the plain or the engineered names.

        Args:
            engineered: rule beside the engineered names.
            with_masks: rule for a model that was trained with masks.
        """
        key = "engineered_background" if engineered else "background"
        rule = self.settings.engineered_background if engineered else self.settings.background
        threshold = rule.with_masks if with_masks and rule.with_masks is not None else rule.threshold
        words = rule.words
        if isinstance(words, str):
            path = find_file(words, f"{self._key}.{key}.words")
            words = [word for entry in read_entries(path) for word in entry.words]
        return Background(kind=rule.kind, threshold=threshold if rule.has_threshold else 0.0, words=words)

    def __getitem__(self, index: int) -> Example:
        name = self.names[index]
        image = self._read(self.image_path(name), to_rgb)
        # Index masks are palette or grey images: never convert, the stored value is the label.
        labels = self._read(self.mask_path(name), lambda mask: np.asarray(mask).astype(np.int64))
        if labels.shape != (image.height, image.width):
            raise DataError(f"{self.mask_path(name)} is {labels.shape}, its photo {(image.height, image.width)}")
        return Example(name, image, torch.from_numpy(self._map(labels, name)))

    def _read(self, path: Path, read: Callable[[Image.Image], Read]) -> Read:
        """Read an image file, in its own mode."""
        try:
            with open_image(path) as image:
                return read(image)
        except ValueError as error:
            raise DataError(f"benchmark {self.settings.name}: {path} cannot be read: {error}") from error

    def _map(self, labels: np.ndarray, name: str) -> np.ndarray:
        """Map (H, W) labels of a file to class indices and `IGNORE`."""
        ignored = np.isin(labels, self.settings.ignore_labels)
        mapped = labels + self.settings.label_offset
        outside = ~ignored & ((mapped < 0) | (mapped >= self.num_labels))
        if outside.any():
            raise DataError(f"{self.mask_path(name)} has label {int(labels[outside][0])}, which is none of the "
                            f"{self.num_labels} classes of {self.settings.name}")  # fmt: skip
        mapped[ignored] = IGNORE
        return mapped

    @staticmethod
    def find_root(settings: BenchmarkSettings) -> Path | None:
        """Return the folder of a set, at or below its root; None where its photos and masks are not there."""
        root = Path(settings.root)
        for candidate in (root, *(root / inside for inside in settings.inside)):
            if (candidate / settings.images).is_dir() and (candidate / settings.masks).is_dir():
                return candidate
        return None

    def _find_root(self) -> Path:
        require_folder(self.settings.root, f"{self._key}.root")
        found = self.find_root(self.settings)
        if found is None:
            raise DataError(f"{self._key}.root={self.settings.root} is not the {self.settings.name} layout: it needs "
                            f"{self.settings.images} and {self.settings.masks}")  # fmt: skip
        return found

    def _class_groups(self, key: str, expected: int | None) -> tuple[tuple[str, ...], ...]:
        """Return the names of each class, from the list in the settings or from a word list."""
        names, where = getattr(self.settings, key), f"{self._key}.{key}"
        if isinstance(names, str):
            path = self.root / names if names.startswith("./") else find_file(names, where)
            groups, where = tuple(entry.words for entry in read_entries(path)), str(path)
        else:
            groups = tuple(tuple(name.strip() for name in entry.split("/")) for entry in names)
        if expected is not None and len(groups) != expected:
            raise ConfigError(f"{where} lists {len(groups)} classes, benchmark {self.settings.name} has {expected}")
        return groups

    def _read_names(self) -> list[str]:
        """Return the names of the split, or of the folders, up to the limit; each has a photo and a mask."""
        split = self.settings.split
        names = (self._found_names() if split is None else self._split_names(split))[: self.settings.limit]
        for path_of in (self.image_path, self.mask_path):
            missing = [name for name in names if not path_of(name).is_file()]
            if missing:
                raise DataError(f"benchmark {self.settings.name}: {path_of(missing[0])} does not exist "
                                f"({len(missing)} of {len(names)} missing)")  # fmt: skip
        return names

    def _split_names(self, split: str) -> list[str]:
        """Return the names of a split file, one a line; they may hold spaces."""
        path = self.root / split
        if not path.is_file() and Path(split).is_file():
            path = Path(split)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError as error:
            raise DataError(f"benchmark {self.settings.name}: split {path} does not exist") from error
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"benchmark {self.settings.name}: split {path} cannot be read: {error}") from error
        names = [checked_name(name, path) for line in lines if (name := line.strip())]
        if not names:
            raise DataError(f"benchmark {self.settings.name}: split {path} names no image")
        return names

    def _found_names(self) -> list[str]:
        """Return the names of all masks and all photos, so that one without the other is noticed."""
        masks = _names(self.root / self.settings.masks, self.settings.mask_suffix)
        if not masks:
            raise DataError(f"benchmark {self.settings.name}: no masks in {self.root / self.settings.masks}")
        return sorted(masks | _names(self.root / self.settings.images, self.settings.image_suffix))


def open_benchmark(group: str, name: str, changes: Mapping[str, Any]) -> Benchmark:
    """Open the segmentation set of a preset for another group of keys than `benchmark`.

    Args:
        group: keys `benchmark` and `root` of which the user gave, for the messages.
        name: of the preset.
        changes: values in place of the preset's.

    Raises:
        InputError: no such set, or see `Benchmark`.
    """
    return Benchmark(_preset(f"{group}.benchmark", name, changes), group)


def open_benchmarks(settings: BenchmarksSettings) -> dict[str, Benchmark | InputError]:
    """Open the sets of a collection by name; an error in place of a set that is not at hand.

    Raises:
        ConfigError: a set that is none.
        DataError: no set at hand.
    """
    require_folder(settings.root, "benchmark.root")
    found: dict[str, Benchmark | InputError] = {}
    for name in settings.sets:
        preset = _preset("benchmark.sets", name, {"root": settings.root, "limit": settings.limit})
        try:
            found[name] = Benchmark(preset)
        except InputError as error:
            found[name] = error
    if not any(isinstance(task, Benchmark) for task in found.values()):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.items())
        raise DataError(f"benchmark.root={settings.root} holds none of the sets ({reasons})")
    return found


def require_folder(root: str, key: str) -> Path:
    """Return the path of a folder.

    Raises:
        DataError: it is none.
    """
    if not Path(root).is_dir():
        raise DataError(f"{key}={root} is no folder")
    return Path(root)


def _preset(key: str, name: str, changes: Mapping[str, Any]) -> BenchmarkSettings:
    """Return the settings of a segmentation set, by the name of its preset."""
    if name not in (known := choices("benchmark")):
        raise ConfigError(f"{key}={name} is unknown; {nearest(name, known)}")
    values = load_choice("benchmark", name)
    if values.get("task", "segmentation") != "segmentation":
        raise ConfigError(f"{key}={name} is no segmentation set")
    return BenchmarkSettings.of({**values, **changes})


def _names(folder: Path, suffix: str) -> set[str]:
    """Return the names of files that end in `suffix`, without it; `city/name` for those in subfolders."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}"))
    return {path.removesuffix(suffix) for path in paths}
