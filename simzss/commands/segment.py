"""`simzss segment`: label photo files with the user's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from simzss.data.settings import Background
from simzss.errors import DataError
from simzss.program import interruptible
from simzss.segmentation.settings import SegmentationSettings


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
        InputError: no image, one that is missing, two of the same name, no classes, or settings that do not fit the
            model; an image that is unreadable, after all others.
    """
    from simzss.evaluation.labelling import label_photos
    from simzss.evaluation.ledger import HINT, classes_key, hold_output, weights_key
    from simzss.segmentation.build import build_segmenter, load_configured, load_configured_sam
    from simzss.segmentation.classifier import checked_names, parse_classes

    check_images(images)
    groups = checked_names(parse_classes(settings.classes), settings.background)
    with interruptible(HINT), hold_output(settings.output_dir) as ledger:
        segmenter = build_segmenter(settings, load_configured(settings), load_configured_sam(settings))
        classifier = segmenter.classifier(settings.classes, settings.background)
        key = {"model": weights_key(segmenter.model), "classes": classes_key(segmenter, classifier, groups)}
        yield from label_photos(segmenter, classifier, images, settings.output_dir, ledger.records(key))
        ledger.clear()


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
    stems = Counter(path.stem for path in images)
    if twice := [stem for stem, times in stems.items() if times > 1]:
        raise DataError(f"two images are named {twice[0]!r}: their results would overwrite each other")
