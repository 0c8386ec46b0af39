"""`simzss threshold`: the background threshold that suits a model, found on some images, checked on the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from simzss.atomic import atomic_write
from simzss.data.settings import BenchmarkSettings
from simzss.program import interruptible
from simzss.segmentation.settings import RefineSettings, SegmentationSettings
from simzss.settings.types import Seed


class ThresholdSettings(SegmentationSettings):
    """Find the background threshold of a model."""

    benchmark: BenchmarkSettings
    """a segmentation set with a background class"""
    names: Literal["plain", "engineered"] = "plain"
    """class names"""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """of the images, on which the threshold is chosen"""
    seed: Seed = 0
    """of the draw of these images"""
    output_dir: Path = Path("outputs/threshold")
    """gets threshold.json"""
    num_workers: Annotated[int, Field(ge=0)] | None = None
    """processes that decode and resize; null: one for every four cores"""

    @field_validator("refine")
    @classmethod
    def _unrefined(cls, refine: RefineSettings) -> RefineSettings:
        if refine.kind != "none":
            raise ValueError("must be none: a threshold is found before any refinement")
        return refine


def run(settings: ThresholdSettings) -> dict[str, Any]:
    """Search, write `threshold.json` and return its content for the benchmark.

    Raises:
        InputError: anything wrong with the model or the benchmark.
    """
    from simzss.data.benchmark import Benchmark
    from simzss.distributed import process_group, raise_on_all_ranks, rank
    from simzss.evaluation.ledger import HINT, hold_output
    from simzss.evaluation.segmentation import decoding_processes
    from simzss.evaluation.threshold import search_threshold
    from simzss.segmentation.build import build_segmenter, load_configured, load_configured_sam

    workers = decoding_processes(settings.num_workers)
    with process_group(), interruptible(HINT), hold_output(settings.output_dir) as ledger:
        ledger.announce("threshold.json")
        with raise_on_all_ranks():
            benchmark = Benchmark(settings.benchmark)
            model = load_configured(settings)
            segmenter = build_segmenter(settings, model, load_configured_sam(settings), settings.benchmark)
        found = search_threshold(
            segmenter, benchmark, settings.names, settings.share, settings.seed, workers, ledger
        ).plain()
        if rank() == 0:
            text = json.dumps({settings.benchmark.name: found}, indent=2) + "\n"
            atomic_write(settings.output_dir / "threshold.json", text.encode())
            ledger.clear()
    return found
