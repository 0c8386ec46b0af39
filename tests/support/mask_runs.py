"""Training of a mask head, small: a real timm ViT of 64 channels, a two-layer text tower, coloured squares."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image

from simzss.cli import dispatch
from simzss.models.checkpoint import save_model
from simzss.models.simzss import SimZSS
from simzss.training.mask_module import MaskModule
from tests.support.models import make_backbone, make_scratch, save_backbone, shaken
from tests.support.two_nodes import torchrun

VOC = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
       "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"]  # fmt: skip
COLOURS = {"car": (40, 40, 200), "cat": (40, 200, 40), "dog": (200, 40, 40), "sheep": (220, 220, 220)}
PAIRS = [("dog", "cat"), ("sheep", "dog"), ("cat", "sheep"), ("car", "dog"), ("car", "cat"), ("cat", "dog"),
         ("dog", "sheep"), ("sheep", "car")]  # fmt: skip
HELD_OUT = ["photo0", "photo4"]
SIZES = [(64, 64), (96, 64), (64, 80)]  # width and height


def squares(width: int, height: int, nouns: tuple[str, str], seed: int = 0) -> tuple[Image.Image, np.ndarray]:
    """A photo of two coloured squares on noise, and its labels."""
    pixels = np.random.default_rng(seed).integers(0, 60, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), np.uint8)
    for noun, left in zip(nouns, (0, width // 2), strict=True):
        part = (slice(height // 4, height * 3 // 4), slice(left + width // 16, left + width * 7 // 16))
        pixels[part], labels[part] = COLOURS[noun], 1 + VOC.index(noun)
        labels[part][0] = 255
    return Image.fromarray(pixels), labels


def write_squares(root: Path) -> None:
    """Photos of squares with their masks, in the layout of PASCAL VOC."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, pair in enumerate(PAIRS):
        photo, labels = squares(*SIZES[number % len(SIZES)], pair, number)
        photo.save(root / "JPEGImages" / f"photo{number}.jpg", quality=95)
        Image.fromarray(labels).save(root / "SegmentationClass" / f"photo{number}.png")
    names = "".join(f"photo{number}\n" for number in range(len(PAIRS)))
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text(names)


def write_model(folder: Path) -> None:
    """The model folder `base` that heads are trained on, beside its backbone's weights."""
    weights = save_backbone(folder / "vit.safetensors", features="self")
    save_model(SimZSS(make_backbone(weights=str(weights), features="self"), shaken(make_scratch())), folder / "base")


def mask_arguments(folder: Path, output: Path, *extra: str) -> list[str]:
    """Overrides of a run of a few seconds on `write_squares` in `folder/voc` and `write_model` in `folder/base`."""
    return [
        "experiment=mrovseg_cpu",
        f"model={folder}/base",
        "masks.benchmark=voc21",
        f"masks.root={folder}/voc",
        "masks.held_out=0.25",
        "masks.batch_size=3",
        "masks.num_workers=0",
        "masks.scales=[1.0,1.0]",
        "masks.flip=false",
        "mask_head.window=64",
        "mask_head.depths=[0,2]",
        "mask_head.width=32",
        "mask_head.queries=6",
        "mask_head.layers=1",
        "mask_head.ensemble_alpha=0.2",
        "mask_loss.num_points=128",
        "optim.lr=1e-2",
        "protocol.templates=photo",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "trainer.precision=32-true",
        "trainer.progress_bar=false",
        f"output_dir={output}",
        *extra,
    ]


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """What the program logs meanwhile."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("simzss")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def train_squares(folder: Path, output: Path, *extra: str) -> list[str]:
    """`simzss train-masks` in this process; what it logs."""
    with log_lines() as lines:
        dispatch(["train-masks", *mask_arguments(folder, output, *extra)])
    return lines


@contextmanager
def fixed_points() -> Iterator[None]:
    """Masks are compared at the same points at every step and on every process."""
    draw = torch.rand
    points = draw(512, 2, generator=torch.Generator().manual_seed(0))

    def rand(*shape: int, **options: object) -> torch.Tensor:
        if options.get("generator") is not None:
            return draw(*shape, **options)
        rows, count, _ = shape
        return points[:count].expand(rows, -1, -1)

    torch.rand = rand
    try:
        yield
    finally:
        torch.rand = draw


def train_as_one_of_two(rank: int, port: int, arguments: list[str], path: Path) -> None:
    """What torchrun would start as process `rank` of two, with `fixed_points`; its head goes to `path.<rank>`."""
    os.environ.update(torchrun(rank, 2, port))
    rank_zero_only.rank = rank  # read from the environment when Lightning is imported, which has happened already
    torch.set_num_threads(1)
    end = MaskModule.on_fit_end

    def keep(module: MaskModule) -> None:
        torch.save(module.head.state_dict(), f"{path}.{rank}")
        end(module)

    MaskModule.on_fit_end = keep
    with fixed_points():
        dispatch(["train-masks", *arguments, "trainer.num_nodes=2"])
