"""The settings of a worker for all tasks, and its spaCy pipeline."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .output import OutputFolder
from .settings import CaptionsSettings, FilterSettings

if TYPE_CHECKING:
    from simzss.concepts.pipeline import ConceptPipeline


@dataclass(frozen=True)
class PipelineSettings:
    """The spaCy pipeline of a worker.

    Attributes:
        name: of a package, or absolute path of a folder.
        batch_size: captions at once.
        accelerator: run on one.
    """

    name: str
    batch_size: int
    accelerator: bool = False


@dataclass(frozen=True)
class Work:
    """All that a worker needs for any task.

    Attributes:
        output: folder of the shards.
        settings: of the run.
        pipeline: that finds the concepts.
        pipeline_info: its name and versions, as every sample has them.
        evaluation: file of the evaluation images' fingerprints, None where they are not looked at.
    """

    output: OutputFolder
    settings: CaptionsSettings
    pipeline: PipelineSettings
    pipeline_info: dict[str, str]
    evaluation: Path | None

    @property
    def filters(self) -> FilterSettings:
        """Return what is left out."""
        return self.settings.filters


@functools.lru_cache(maxsize=1)
def load_pipeline(settings: PipelineSettings) -> "ConceptPipeline":
    """Load the pipeline once per process, which takes as long as a thousand captions."""
    from simzss.concepts.pipeline import ConceptPipeline  # spaCy, which the driver does without

    return ConceptPipeline(settings.name, settings.batch_size, settings.accelerator)


def describe_pipeline(settings: PipelineSettings) -> dict[str, str]:
    """Return name and versions of the pipeline where tasks are done, which has it ready then.

    Raises:
        InputError: it cannot be used.
    """
    return load_pipeline(settings).info
