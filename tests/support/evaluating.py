"""An evaluation in one process of several, with what it saw; apart, so that a spawned process imports little."""

import json
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

import simzss.evaluation.evaluate as evaluation
from simzss.config import load_choice, to_plain
from simzss.data.benchmark import Benchmark, BenchmarkConfig
from simzss.models.folder import load_model
from simzss.segmentation.segmenter import Protocol, Segmenter

LIMITS = (None, 1)


def evaluated(folder: Path, limit: int | None) -> dict:
    """Scores, confusion matrix and visited images of this process: model `run/model` on the VOC layout in `voc`."""
    options = to_plain(load_choice("benchmark", "voc20")) | {"root": str(folder / "voc"), "limit": limit}
    model, _ = load_model(folder / "run" / "model")
    whole = Protocol("whole", short_side=64, crop_size=64, stride=32, templates="photo", temperature=0.05)
    segmenter = Segmenter(model, whole, "concept", "32-true", torch.device("cpu"))
    matrices: list[torch.Tensor] = []
    visited: list[str] = []
    original = evaluation.scores

    def spy(matrix, names):
        matrices.append(matrix.clone())
        return original(matrix, names)

    evaluation.scores = spy
    try:
        benchmark = Benchmark(BenchmarkConfig(**options))
        result = evaluation.evaluate(segmenter, benchmark, lambda example, _: visited.append(example.name))
    finally:
        evaluation.scores = original
    return {"matrix": matrices[0], "visited": visited, "result": json.dumps(result)}


def worker(rank: int, world: int, folder: Path, address: Path, path: Path) -> None:
    """Process `rank` of an evaluation over all images and of one over the first image alone."""
    warnings.filterwarnings("ignore", ".*compute.*method of metric ConfusionMatrix was called before.*")
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=world)
    torch.save([evaluated(folder, limit) for limit in LIMITS], f"{path}.{rank}")
    dist.barrier()
    dist.destroy_process_group()
