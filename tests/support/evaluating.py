"""An evaluation with what it saw, and images to evaluate."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from simzss.data.benchmark import open_benchmark
from simzss.evaluation.segmentation import evaluate
from simzss.models.checkpoint import load_model
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import Protocol

PARTS = ("confusion", "per_image")


def evaluated(folder: Path, limit: int | None) -> dict:
    """Scores, confusion matrix and visited images of this process: model `run/model` on the VOC layout in `voc`."""
    whole = Protocol(short_side=64, crop_size=64, stride=32, templates="photo")
    segmenter = Segmenter(load_model(folder / "run" / "model"), whole, precision="32-true", device="cpu")
    visited: list[str] = []
    benchmark = open_benchmark("validation", "voc20", {"root": str(folder / "voc"), "limit": limit})
    found = evaluate(segmenter, benchmark, lambda name, _: visited.append(name), engineered=True)
    counts = {
        f"{names} {part}": getattr(column.counts, part) for names, column in found.by_names.items() for part in PARTS
    }
    return {"counts": counts, "visited": visited, "result": json.dumps(found.plain())}


def scene(seed: int) -> Image.Image:
    """Blocks of a few colours, so that no two images look alike to a network."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 2, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(20, axis=0).repeat(26, axis=1))
