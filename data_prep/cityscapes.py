"""Make the train-id masks of Cityscapes' validation images.

Label images are renumbered to train ids (0 to 18, 255 not evaluated); where one is missing, its polygons are drawn.
"""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from simzss import cli
from simzss.data.images import MAX_PIXELS
from simzss.errors import DataError, nearest
from simzss.settings.base import Settings
from simzss.settings.program import parse

from .mask_files import IGNORE, Job, find_folder, make_masks, print_reports, read_json, read_labels, relabel

OFFICIAL = 500
LABELS = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road",
    "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole",
    "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck",
    "bus", "caravan", "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip
"""Official labels; index = label id."""

EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label ids of the classes in conf/names/cityscapes.txt, in its order; index = train id."""

NOT_DRAWN = "license plate"  # has the id -1: what lies below it stays
TABLE = dict.fromkeys(range(len(LABELS)), IGNORE) | {label: index for index, label in enumerate(EVALUATED)}


class CityscapesSettings(Settings):
    """Make the train-id masks of Cityscapes' validation images: gtFine/val/<city>/*_gtFine_labelTrainIds.png.

    simzss prep cityscapes root=cityscapes
    """

    root: Path
    """folder with leftImg8bit/val and gtFine/val of the official downloads"""
    overwrite: bool = False
    """make finished masks again"""


def main(arguments: list[str] | None = None) -> None:
    """Read arguments, renumber or draw, report."""
    settings = parse(CityscapesSettings, arguments)
    root = settings.root
    photos = find_folder(f"root={root}", [root / "leftImg8bit/val"], "it comes with leftImg8bit_trainvaltest.zip")
    labels = find_folder(f"root={root}", [root / "gtFine/val"], "it comes with gtFine_trainvaltest.zip")
    names = _names(photos, "_leftImg8bit.png")
    for kind in ("labelIds.png", "polygons.json"):
        names |= _names(labels, f"_gtFine_{kind}")
    jobs = [_job(photos, labels, name) for name in sorted(names)]
    print_reports([make_masks(root, jobs, TABLE.values(), "val", OFFICIAL, settings.overwrite)])


def renumber(path: Path) -> np.ndarray:
    """Return the mask (H, W) uint8 of a label image.

    Raises:
        DataError: unreadable, or a label that is none of the official ones.
    """
    return relabel(read_labels(path), TABLE, path)


def draw(path: Path) -> np.ndarray:
    """Draw the mask (H, W) uint8 of a file of polygons: later ones cover earlier ones, as in the official images.

    Raises:
        DataError: unreadable, of another shape, or a label that is none of the official ones.
    """
    content = read_json(path)
    try:
        width, height = int(content["imgWidth"]), int(content["imgHeight"])
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels")
        image = Image.new("L", (width, height), LABELS.index("unlabeled"))
        pen = ImageDraw.Draw(image)
        for thing in content["objects"]:
            name = str(thing["label"])
            # "cargroup" is several cars that were not told apart; "polegroup" is a label of its own.
            if name not in LABELS:
                name = name.removesuffix("group")
            if thing.get("deleted") or name == NOT_DRAWN:
                continue
            if name not in LABELS:
                raise DataError(f"{path}: label {thing['label']} is unknown; {nearest(name, LABELS)}")
            pen.polygon([(x, y) for x, y in thing["polygon"]], fill=LABELS.index(name))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} holds no Cityscapes polygons: it needs imgHeight, imgWidth and objects[] with label "
                         f"and polygon ({error!r})") from error  # fmt: skip
    return relabel(np.asarray(image), TABLE, path)


def _job(photos: Path, labels: Path, name: str) -> Job:
    """Return the job of one mask; `name` is <city>/<image>."""
    pixels, polygons = labels / f"{name}_gtFine_labelIds.png", labels / f"{name}_gtFine_polygons.json"
    source, make = (polygons, draw) if polygons.is_file() and not pixels.is_file() else (pixels, renumber)
    photo, mask = photos / f"{name}_leftImg8bit.png", labels / f"{name}_gtFine_labelTrainIds.png"
    return Job((photo, source), mask, partial(make, source))


def _names(folder: Path, suffix: str) -> set[str]:
    """Return <city>/<image> of the files that end in `suffix`."""
    return {path.relative_to(folder).as_posix().removesuffix(suffix) for path in folder.glob(f"*/*{suffix}")}


if __name__ == "__main__":
    cli.run_module(main)
