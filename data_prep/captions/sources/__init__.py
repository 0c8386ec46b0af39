"""Read image-caption pairs in the layouts that they come in.

`open_source` runs in the driver and cuts the input into tasks; `read_task` runs in the process that does a task, maybe
on another machine with the same files.
"""

from collections.abc import Iterator
from pathlib import Path

from ..records import Dropped, RawSample, Source, Task
from ..settings import SourceSettings
from .coco import open_coco
from .dataset_folder import open_dataset, read_dataset
from .files import read_files
from .img2dataset import open_img2dataset, read_img2dataset
from .table import open_table

__all__ = ["SourceSettings", "open_source", "read_task"]


def open_source(settings: SourceSettings, scratch: Path) -> Source:
    """Open the input that the settings name, and look through it as far as its tasks need it.

    Args:
        scratch: folder for temporary files that the source reads while it lives; the caller removes it.

    Raises:
        DataError: the input is missing, of another shape, or has nothing to use.
    """
    if settings.layout == "coco":
        return open_coco(settings, scratch)
    if settings.layout == "table":
        return open_table(settings, scratch)
    return open_img2dataset(settings) if settings.layout == "img2dataset" else open_dataset(settings)


def read_task(task: Task, settings: SourceSettings) -> Iterator[RawSample | Dropped]:
    """Yield the samples of a task and what is left out, in order, one image in memory at a time.

    Each image that is not among the samples is one `Dropped` of kind image, here or in `Source.dropped`; each caption
    that is left out of an image that may well be kept is one of kind caption.

    Raises:
        DataError: the task's input cannot be read as a whole.
    """
    if settings.layout == "img2dataset":
        return read_img2dataset(task.payload, settings)
    if settings.layout == "dataset":
        return read_dataset(task.payload, settings)
    return read_files(task.payload)
