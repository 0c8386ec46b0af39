"""Read the samples of a task and filter them before their captions are parsed."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from simzss.data.images import ImageTooLargeError, decode_opened, open_image

from .duplicates import fingerprint
from .evaluation_photos import EvaluationImages
from .filters import EVALUATION_COPY, caption_reason, image_reason, pixels_reason
from .records import Dropped, RawSample, Task
from .sources import read_task
from .work import Work

_SHOWN = 200  # characters of a caption that a list of what was dropped shows


@dataclass(frozen=True)
class Screened:
    """A sample that passed the filters.

    Attributes:
        position: in its task; images that were dropped before it count as well.
        sample: with the captions that passed.
        fingerprint: digest of the file and perceptual hash, where they were asked for.
    """

    position: int
    sample: RawSample
    fingerprint: tuple[bytes, int] | None = None


def screen(task: Task, work: Work) -> Iterator[Screened | Dropped]:
    """Yield the samples of a task whose image decodes and which the filters keep, and what is left out.

    A broken image is reported now rather than in every epoch.
    """
    position = -1
    for item in read_task(task, work.settings):
        if isinstance(item, Dropped):
            yield item
            continue
        position += 1
        image = _decoded(item, work)
        if isinstance(image, Dropped):
            yield image
            continue
        needed = work.filters.looks_for_duplicates or work.evaluation is not None
        found = fingerprint(item.data, image) if needed else None
        if found is not None and work.evaluation is not None and (twin := _evaluation(work).match(found[1])):
            yield Dropped("image", item.name, EVALUATION_COPY, twin)
            continue
        kept = []
        for text in item.captions:
            reason = caption_reason(text, work.filters)
            if reason is None:
                kept.append(text)
            else:
                yield Dropped("caption", item.name, reason, text[:_SHOWN])
        if kept:
            yield Screened(position, replace(item, captions=tuple(kept)), found)
        else:
            yield Dropped("image", item.name, "no caption left")


def _decoded(sample: RawSample, work: Work) -> Image.Image | Dropped:
    """Decode an image to RGB, or tell why it is left out."""
    try:
        with open_image(sample.data) as image:
            reason = image_reason(image.size, work.filters)  # before its pixels are made
            return decode_opened(image) if reason is None else Dropped("image", sample.name, reason)
    except ValueError as error:
        reason = None
        if isinstance(error, ImageTooLargeError):  # without a size where it is so big that Pillow does not give it
            reason = pixels_reason(work.filters) if error.size is None else image_reason(error.size, work.filters)
        if reason is not None:
            return Dropped("image", sample.name, reason)
        return Dropped("image", sample.name, "unreadable image", str(error).removeprefix("unreadable image: "))


def _evaluation(work: Work) -> EvaluationImages:
    assert work.evaluation is not None
    return _load_evaluation(work.evaluation, work.filters.evaluation_distance)


@functools.lru_cache(maxsize=1)
def _load_evaluation(path: Path, distance: int) -> EvaluationImages:
    return EvaluationImages.load(path, distance)
