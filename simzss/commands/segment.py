"""`simzss segment`: label photo files with the user's words."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simzss.data.settings import Background
from simzss.errors import DataError
from simzss.segmentation.settings import SegmentationSettings

if TYPE_CHECKING:
    from PIL import Image

    from simzss.segmentation.refine.base import Counts

log = logging.getLogger(__name__)


class SegmentSettings(SegmentationSettings):
    """Segment photos with words of your own."""

    classes: str | list[str]
    """"name,name,…"; several names of one class are joined by /: "cat/kitten,dog/puppy\""""
    background: Background = Background()
    """rule for what is none of the classes"""
    output_dir: Path = Path("outputs/segment")
    """gets NAME_overlay.png and NAME_mask.png"""


def run(settings: SegmentSettings, images: Sequence[Path]) -> Iterator[Path]:
    """Write `NAME_overlay.png` and `NAME_mask.png` of each image and yield their paths.

    Raises:
        InputError: no image, one that is missing or unreadable, two of the same name, no classes, or settings that do
            not fit the model.
    """
    from simzss.progress import progress
    from simzss.segmentation.build import build_segmenter, load_configured, load_configured_sam
    from simzss.segmentation.classifier import checked_names, parse_classes

    check_images(images)
    checked_names(parse_classes(settings.classes), settings.background)
    segmenter = build_segmenter(settings, load_configured(settings), load_configured_sam(settings))
    classifier = segmenter.classifier(settings.classes, settings.background)
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    regions: Counts | None = None
    starts = range(0, len(images), segmenter.chunk_size)
    chunks = [images[start : start + segmenter.chunk_size] for start in starts]
    for chunk in progress(chunks, len(images), "segment", count=len):
        photos, unreadable = read_photos(chunk)
        # What was read before a broken file is still worth its mask.
        for path, prediction in zip(chunk, segmenter.predict_batch(photos, classifier), strict=False):
            drawn, indices = (settings.output_dir / f"{path.stem}_{what}.png" for what in ("overlay", "mask"))
            prediction.overlay().save(drawn)
            yield drawn
            prediction.save(indices)
            yield indices
            if prediction.regions is not None:
                regions = prediction.regions if regions is None else regions + prediction.regions
        if unreadable is not None:
            raise unreadable
    if regions is not None:
        log.info("regions: %s", _summary(regions.by_name(classifier.names)))


def check_images(images: Sequence[Path]) -> None:
    """Check what needs no model.

    Raises:
        DataError: no image, one that is missing, two of the same name.
    """
    if not images:
        raise DataError("no image given: simzss segment IMAGE… model=DIR classes=…")
    for path in images:
        if not path.is_file():
            raise DataError(f"image {path} does not exist")
    stems = [path.stem for path in images]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise DataError(f"two images are named {twice[0]!r}: their results would overwrite each other")


def read_photos(paths: Sequence[Path]) -> tuple[list[Image.Image], DataError | None]:
    """Return the photos before the first that cannot be read, and the error of that one."""
    from simzss.segmentation.inference.prepare import read_photo

    photos: list[Image.Image] = []
    for path in paths:
        try:
            photos.append(read_photo(path))
        except DataError as error:
            return photos, error
    return photos, None


def _summary(counts: Mapping[str, Any]) -> str:
    """Return counts of regions on one line, the classes that were lost by name."""
    sums = {key: sum(value.values()) if isinstance(value, Mapping) else value for key, value in counts.items()}
    line = ", ".join(f"{key} {value}" for key, value in sums.items())
    return f"{line} ({', '.join(counts['lost'])})" if counts["lost"] else line
