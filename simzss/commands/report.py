"""`simzss report`: differences between runs of `simzss eval`, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from simzss.settings.base import Settings
from simzss.settings.types import Seed

if TYPE_CHECKING:
    from simzss.reports.compare import Comparison


class ReportSettings(Settings):
    """Compare runs of `simzss eval`, the first one being the reference."""

    resamples: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """of the images, drawn with replacement, the same for both runs of a pair"""
    seed: Seed = 0
    """of the draws"""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """share of the resamples inside the interval"""
    output_dir: Path = Path("outputs/compare")
    """gets comparison.json, comparison.md and comparison.html"""


def run(settings: ReportSettings, runs: Sequence[Path]) -> Comparison:
    """Compare output folders of `simzss eval` and write `comparison.json`, `.md` and `.html`.

    Raises:
        InputError: fewer than two runs, a folder that is none of `simzss eval`, or nothing that can be compared.
    """
    from simzss.reports.compare import compare_runs
    from simzss.reports.comparison import write_comparison
    from simzss.tasks import hold_folder

    with hold_folder(settings.output_dir, "output_dir"):
        comparison = compare_runs(runs, settings.resamples, settings.seed, settings.confidence)
        write_comparison(settings.output_dir, comparison)
    return comparison
