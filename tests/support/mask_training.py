"""Small folders of photos and index masks in the layout of PASCAL VOC; the colours of a photo tell its labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from simzss.data.benchmark import Benchmark
from simzss.data.settings import BenchmarkSettings
from simzss.settings.compose import load_choice
from simzss.training.settings import MasksSettings


def coloured(labels: np.ndarray) -> Image.Image:
    """A photo of a mask with labels 0 to 20, or black where they are 255."""
    values = labels.astype(int)
    colours = np.stack([10 * values + 20, 240 - 10 * values, values % 2 * 200 + 20], axis=-1)
    return Image.fromarray(np.where(labels[..., None] == 255, 0, colours).astype(np.uint8))


def told(photo: torch.Tensor) -> torch.Tensor:
    """Labels 0 to 20 that the colours of a photo (3, H, W) tell."""
    return ((photo[0].double() - 20) / 10).round().long()


def blocks(width: int, height: int, seed: int = 0, side: int = 16, labels: Sequence[int] = range(21)) -> np.ndarray:
    """A mask of squares with random labels."""
    random = np.random.default_rng(seed)
    squares = random.choice(np.array(labels, np.uint8), (height // side + 1, width // side + 1))
    return squares.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]


def write_voc(root: Path, masks: Sequence[np.ndarray], suffix: str = ".jpg") -> list[str]:
    """Photos with their masks and a split file of all of them; returns their names."""
    names = [f"2007_{number:06d}" for number in range(len(masks))]
    write_pairs(root / "JPEGImages", root / "SegmentationClass", dict(zip(names, masks, strict=True)), suffix)
    split = root / "ImageSets" / "Segmentation" / "val.txt"
    split.parent.mkdir(parents=True, exist_ok=True)
    split.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return names


def write_pairs(photos: Path, targets: Path, masks: dict[str, np.ndarray], suffix: str = ".jpg") -> None:
    """A photo and an index mask, with a palette that is not its labels, of each name."""
    for folder in (photos, targets):
        folder.mkdir(parents=True, exist_ok=True)
    for name, labels in masks.items():
        coloured(labels).save(photos / f"{name}{suffix}", quality=95)
        mask = Image.fromarray(labels.astype(np.uint8))
        mask.putpalette([(index * 37 + channel) % 256 for index in range(256) for channel in range(3)])
        mask.save(targets / f"{name}.png")


def voc(root: Path, name: str = "voc20", **changes) -> Benchmark:
    """The benchmark of a `write_voc` folder."""
    return Benchmark(BenchmarkSettings.of(load_choice("benchmark", name) | {"root": str(root)} | changes))


def mask_settings(root: Path | str = "gone", **changes) -> MasksSettings:
    """Settings: whole photos of a `write_voc` folder, at their own size where it is that of a crop."""
    options = {"benchmark": "voc20", "root": str(root), "batch_size": 4, "num_workers": 0, "scales": (1.0, 1.0)}
    return MasksSettings.of(options | {"flip": False} | changes)
