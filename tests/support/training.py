"""A run small enough for a test: a real timm ViT of 64 channels, a two-layer text tower, coloured squares."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from simzss.commands import train as command
from simzss.commands.verbs import settings_of
from simzss.data.shards import Sample, write_shard
from tests.support.files import PIPELINE, caption, encode

COLOURS = {"dog": (200, 40, 40), "cat": (40, 200, 40), "car": (40, 40, 200), "tree": (200, 200, 40)}


def coloured_sample(index, rng, concepts=True):
    """Make a sample: a square of one colour on noise; the colour is named by a noun."""
    noun = list(COLOURS)[index % len(COLOURS)]
    pixels = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
    pixels[16:48, 16:48] = COLOURS[noun]
    text = f"a {noun} number {index} on the floor"
    words = (noun, "floor") if concepts else ()
    return Sample(f"{index:09d}", encode(Image.fromarray(pixels)), "png", (caption(text, *words),), f"{index}.png")


def coloured_shards(folder, count=32, without_concepts=()):
    """Write two shards of coloured squares; the images in `without_concepts` have captions without one."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    samples = [coloured_sample(i, rng, i not in without_concepts) for i in range(count)]
    for number, half in enumerate((samples[: count // 2], samples[count // 2 :])):
        write_shard(folder / f"shard-{number}.tar", half, PIPELINE)
    return folder


def tiny_arguments(shards, output, *extra):
    """Return the overrides of a run of a few seconds."""
    return [
        "backbone=dino_vits16",
        "backbone.timm_name=test_vit.r160_in1k",
        "backbone.weights=random",
        "backbone.image_size=64",
        "text=clip_small",
        "text.layers=2",
        "text.width=64",
        "text.context_length=16",
        f"data.shards={shards}/*.tar",
        "data.batch_size=8",
        "data.num_workers=0",
        "optim.lr=1e-3",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "trainer.precision=32-true",
        "trainer.progress_bar=false",
        "trainer.epochs=3",
        f"output_dir={output}",
        *extra,
    ]


def tiny_settings(shards, output, *extra):
    """Return the settings of `tiny_arguments`."""
    return settings_of("train", tiny_arguments(shards, output, *extra))


def train(shards, output, *extra):
    """Train with the settings of `tiny_arguments`; return the model folder."""
    return command.run(tiny_settings(shards, output, *extra))


def logged(output: Path, column="train/loss"):
    """Read one column of a run's metrics.csv by step."""
    with (output / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row.get(column)}
