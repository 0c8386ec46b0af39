"""An evaluation in one process of several, with what it saw; apart, so that a spawned process imports little."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from simzss.config import load_choice, to_plain
from simzss.data.benchmark import Benchmark, BenchmarkConfig
from simzss.evaluation.segmentation import evaluate
from simzss.models.checkpoint import load_model
from simzss.segmentation.protocol import WHOLE_336
from simzss.segmentation.segmenter import Segmenter

LIMITS = (None, 1)
PARTS = ("confusion", "per_image")


def evaluated(folder: Path, limit: int | None) -> dict:
    """Scores, confusion matrix and visited images of this process: model `run/model` on the VOC layout in `voc`."""
    options = to_plain(load_choice("benchmark", "voc20")) | {"root": str(folder / "voc"), "limit": limit}
    model, _ = load_model(folder / "run" / "model")
    whole = replace(WHOLE_336, short_side=64, crop_size=64, stride=32, templates="photo")
    segmenter = Segmenter(model, whole, "concept", "32-true", torch.device("cpu"))
    visited: list[str] = []
    benchmark = Benchmark(BenchmarkConfig(**options))
    found = evaluate(segmenter, benchmark, lambda name, _: visited.append(name), engineered=True)
    counts = {f"{names} {part}": getattr(counts, part) for names, counts in found.counts.items() for part in PARTS}
    return {"counts": counts, "visited": visited, "result": json.dumps(found.result)}


def worker(rank: int, world: int, folder: Path, address: Path, path: Path) -> None:
    """Process `rank` of an evaluation over all images and of one over the first image alone."""
    warnings.filterwarnings("ignore", ".*compute.*method of metric ConfusionMatrix was called before.*")
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=world)
    torch.save([evaluated(folder, limit) for limit in LIMITS], f"{path}.{rank}")
    dist.barrier()
    dist.destroy_process_group()
