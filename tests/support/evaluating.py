"""An evaluation in one process of several, with what it saw; apart, so that a spawned process imports little."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from simzss.data.benchmark import open_benchmark
from simzss.evaluation.segmentation import evaluate
from simzss.models.checkpoint import load_model
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import Protocol

LIMITS = (None, 1)
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


def worker(rank: int, world: int, folder: Path, address: Path, path: Path) -> None:
    """Process `rank` of an evaluation over all images and of one over the first image alone."""
    warnings.filterwarnings("ignore", ".*compute.*method of metric ConfusionMatrix was called before.*")
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=world)
    torch.save([evaluated(folder, limit) for limit in LIMITS], f"{path}.{rank}")
    dist.barrier()
    dist.destroy_process_group()


def scene(seed: int) -> Image.Image:
    """Blocks of a few colours, so that no two images look alike to a network."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 2, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(20, axis=0).repeat(26, axis=1))


def on_two_processes(measure: Callable[[], Any], folder: Path) -> list[Any]:
    """What `measure` returns, as JSON has it, on each of two processes that are forked from this one."""
    mp.start_processes(_forked, (measure, folder), nprocs=2, start_method="fork")
    return [json.loads((folder / f"found.{rank}").read_text()) for rank in range(2)]


def _forked(rank: int, measure: Callable[[], Any], folder: Path) -> None:
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    (folder / f"found.{rank}").write_text(json.dumps(measure()))
    dist.barrier()
    dist.destroy_process_group()
