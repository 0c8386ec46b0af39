"""Draw the masks of COCO-Object: the 80 things of COCO from its instance annotations.

Masks hold 0 for background and 1 to 80 by category id.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from simzss import cli
from simzss.concepts.bank import read_entries
from simzss.data.names import checked_name
from simzss.errors import DataError
from simzss.settings.base import Settings
from simzss.settings.compose import CONF_DIR
from simzss.settings.program import parse

from .mask_files import Job, find_folder, make_masks, print_reports, read_json
from .regions import decode_region

OFFICIAL = 5000


class CocoObjectSettings(Settings):
    """Draw the masks of COCO-Object, the 80 things of COCO: annotations/val2017/<id>_instanceTrainIds.png.

    simzss prep coco_object root=coco
    """

    root: Path
    """folder with images/val2017 of COCO 2017; gets the masks"""
    instances: Path | None = None
    """instances_val2017.json; null: looked for in `root`/annotations"""
    overwrite: bool = False
    """draw finished masks again"""


@dataclass(frozen=True)
class Instance:
    """One object, or a crowd of them.

    Attributes:
        number: annotation id.
        value: in the mask.
        area: in pixels.
        segmentation: polygons or run lengths.
    """

    number: Any
    value: int
    area: float
    segmentation: Any


@dataclass(frozen=True)
class Picture:
    """An image of the annotation file."""

    file_name: str
    height: int
    width: int
    instances: list[Instance] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> None:
    """Read arguments, draw, report."""
    settings = parse(CocoObjectSettings, arguments)
    root = settings.root
    photos = find_folder(f"root={root}", [root / "images/val2017"], "it gets the photos of val2017.zip")
    path = settings.instances or root / "annotations/instances_val2017.json"
    pictures = read_instances(path)
    masks = root / "annotations/val2017"
    jobs = [
        Job(
            (photos / picture.file_name,),
            masks / f"{Path(picture.file_name).stem}_instanceTrainIds.png",
            partial(draw, picture, path),
            (picture.height, picture.width),
        )
        for picture in pictures
    ]
    report = make_masks(root, jobs, range(len(class_names()) + 1), "val2017", OFFICIAL, settings.overwrite)
    listed = {picture.file_name for picture in pictures}
    names = sorted(path.name for path in photos.glob("*.jpg"))
    report.missing += [f"annotations of {name}" for name in names if name not in listed]
    print_reports([report])


def read_instances(path: Path) -> list[Picture]:
    """Read the images of `instances_val2017.json` in the order of the file.

    Raises:
        DataError: missing, of another shape, an id that nothing belongs to, or other classes than COCO's.
    """
    content = read_json(path)
    try:
        pictures = {
            image["id"]: Picture(checked_name(str(image["file_name"]), path), int(image["height"]), int(image["width"]))
            for image in content["images"]
        }
        categories = {int(category["id"]): str(category["name"]) for category in content["categories"]}
        values = {category: value for value, category in enumerate(sorted(categories), start=1)}
        for annotation in content["annotations"]:
            number, category = annotation["id"], annotation["category_id"]
            if category not in values:
                raise DataError(f"{path}: annotation {number} has category {category}, which is not in its categories")
            if annotation["image_id"] not in pictures:
                raise DataError(f"{path}: annotation {number} is of image {annotation['image_id']}, which is not "
                                 "in its images")  # fmt: skip
            pictures[annotation["image_id"]].instances.append(
                Instance(number, values[category], float(annotation["area"]), annotation["segmentation"])
            )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is no COCO instances file: it needs images[] with id, file_name, height and width, "
                         "categories[] with id and name, annotations[] with id, image_id, category_id, area and "
                         f"segmentation ({error!r})") from error  # fmt: skip
    names, expected = [categories[category] for category in sorted(categories)], class_names()
    if names != expected:
        wrong = next((pair for pair in zip(names, expected, strict=False) if pair[0] != pair[1]), None)
        raise DataError(f"{path} has not COCO's {len(expected)} things: "
                         + (f"{wrong[0]} stands for {wrong[1]}" if wrong else f"{len(names)} categories"))  # fmt: skip
    return list(pictures.values())


def draw(picture: Picture, path: Path) -> np.ndarray:
    """Draw a mask (H, W) uint8: where instances overlap, the smaller one is on top, of equal ones the later.

    Raises:
        DataError: a region is broken, or of an image of another size; names `path`.
    """
    mask = np.zeros((picture.height, picture.width), dtype=np.uint8)
    for instance in sorted(picture.instances, key=lambda instance: -instance.area):
        try:
            region = decode_region(instance.segmentation, picture.height, picture.width)
        except ValueError as error:
            raise DataError(f"{path}: annotation {instance.number}: {error}") from error
        mask[region] = instance.value
    return mask


def class_names() -> list[str]:
    """Return the 80 things in the order of mask values."""
    return [entry.name for entry in read_entries(CONF_DIR / "names/coco_things.txt")]


if __name__ == "__main__":
    cli.run_module(main)
