"""Draw the masks of PASCAL Context: its 59 frequent classes from the annotations of the detail API.

Masks hold 0 for background and 1 to 59; ImageSets/SegmentationContext gets a list of the images of each phase.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from simzss import cli
from simzss.concepts.bank import read_entries
from simzss.data.names import checked_name
from simzss.errors import DataError
from simzss.settings.base import Settings
from simzss.settings.compose import CONF_DIR
from simzss.settings.program import parse

from .mask_files import Job, Report, find_folder, make_masks, print_reports, read_json
from .outputs import save_file
from .regions import decode_region

CATEGORIES = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
"""Official ids of the classes in conf/names/context59.txt, in its order; a class's mask value is its line, from 1."""

VALUES = {category: value for value, category in enumerate(CATEGORIES, start=1)}

# Images of the published trainval_merged.json; the paper counts one or two more (4,998 and 5,105).
OFFICIAL = {"train": 4996, "val": 5104}


class ContextSettings(Settings):
    """Draw the masks of PASCAL Context: VOC2010/SegmentationClassContext, and the splits.

    simzss prep context root=VOCdevkit
    """

    root: Path
    """folder VOCdevkit, or VOC2010 in it, with JPEGImages of the PASCAL VOC 2010 download"""
    annotations: Path | None = None
    """trainval_merged.json of the detail API; null: looked for in VOC2010 and beside it"""
    phases: Annotated[list[Literal["train", "val"]], Field(min_length=1)] = ["train", "val"]
    """which images"""
    overwrite: bool = False
    """draw finished masks again"""


@dataclass(frozen=True)
class Picture:
    """An image of the annotation file; `regions` are (annotation id, category id, segmentation) in drawing order."""

    file_name: str
    phase: str
    height: int
    width: int
    regions: list[tuple[Any, int, Any]] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> None:
    """Read arguments, draw, write the splits, report."""
    settings = parse(ContextSettings, arguments)
    root = settings.root
    candidates = [root / inside / "JPEGImages" for inside in (".", "VOC2010", "VOCdevkit/VOC2010")]
    photos = find_folder(f"root={root}", candidates, "give VOCdevkit, which holds VOC2010/JPEGImages")
    folder = photos.parent
    path = settings.annotations or _find_annotations(folder)
    pictures = read_annotations(path)
    counts = Counter(picture.phase for picture in pictures)
    print(f"{path}: {', '.join(f'{count:,} images of phase {phase}' for phase, count in sorted(counts.items()))}")
    reports = []
    for phase in dict.fromkeys(settings.phases):
        report = _make_phase(root, pictures, phase, folder, path, settings.overwrite)
        if report.done:
            names = "".join(f"{mask.stem}\n" for mask in report.done)
            split = folder / "ImageSets" / "SegmentationContext" / f"{phase}.txt"
            save_file(split, names.encode())
        reports.append(report)
    print_reports(reports)


def read_annotations(path: Path) -> list[Picture]:
    """Read the images of `trainval_merged.json` in the order of the file.

    Raises:
        DataError: missing, of another shape, an id that nothing belongs to, or classes under other ids.
    """
    content = read_json(path)
    try:
        pictures = {
            image["image_id"]: Picture(
                checked_name(str(image["file_name"]), path),
                str(image["phase"]),
                int(image["height"]),
                int(image["width"]),
            )
            for image in content["images"]
        }
        categories = {category["category_id"]: str(category["name"]) for category in content["categories"]}
        for annotation in content["annos_segmentation"]:
            number, category = annotation["id"], annotation["category_id"]
            if category not in categories:
                raise DataError(f"{path}: annotation {number} has category {category}, which is not in its categories")
            if annotation["image_id"] not in pictures:
                raise DataError(f"{path}: annotation {number} is of image {annotation['image_id']}, which is not "
                                 "in its images")  # fmt: skip
            pictures[annotation["image_id"]].regions.append((number, category, annotation["segmentation"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is no annotation file of the detail API: it needs images[] with image_id, file_name, "
                         "phase, height and width, categories[] with category_id and name, annos_segmentation[] with "
                         f"id, image_id, category_id and segmentation ({error!r})") from error  # fmt: skip
    for number, name in zip(CATEGORIES, class_names(), strict=True):
        # The file writes "pottedplant" and "tvmonitor".
        found = categories.get(number, "nothing")
        if found.replace(" ", "") != name.replace(" ", ""):
            raise DataError(f"{path}: category {number} is {found}, in PASCAL Context it is {name}")
    return list(pictures.values())


def draw(picture: Picture, path: Path) -> np.ndarray:
    """Draw a mask (H, W) uint8: later annotations cover earlier ones, other classes are background.

    Raises:
        DataError: a region is broken, or of an image of another size; names `path`.
    """
    mask = np.zeros((picture.height, picture.width), dtype=np.uint8)
    for number, category, segmentation in picture.regions:
        try:
            region = decode_region(segmentation, picture.height, picture.width)
        except ValueError as error:
            raise DataError(f"{path}: annotation {number}: {error}") from error
        mask[region] = VALUES.get(category, 0)
    return mask


def class_names() -> list[str]:
    """Return the 59 classes in the order of mask values."""
    return [entry.name for entry in read_entries(CONF_DIR / "names/context59.txt")]


def _make_phase(root: Path, pictures: list[Picture], phase: str, folder: Path, path: Path, overwrite: bool) -> Report:
    masks = folder / "SegmentationClassContext"
    jobs = [
        Job(
            (folder / "JPEGImages" / picture.file_name,),
            masks / f"{Path(picture.file_name).stem}.png",
            partial(draw, picture, path),
            (picture.height, picture.width),
        )
        for picture in pictures
        if picture.phase == phase
    ]
    return make_masks(root, jobs, range(len(CATEGORIES) + 1), phase, OFFICIAL[phase], overwrite)


def _find_annotations(folder: Path) -> Path:
    beside = folder.parent / "trainval_merged.json"
    return beside if beside.is_file() else folder / "trainval_merged.json"


if __name__ == "__main__":
    cli.run_module(main)
