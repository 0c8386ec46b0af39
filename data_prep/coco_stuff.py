"""Renumber the pixel maps of COCO-Stuff to its 171 classes.

The maps are unpacked into `root` or, as the set's authors advise, into `root`/annotations. Masks hold 0 to 170, and 255
for unlabelled pixels.
"""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from simzss import cli
from simzss.errors import DataError
from simzss.settings.base import Settings
from simzss.settings.program import parse

from .mask_files import IGNORE, Job, find_folder, make_masks, print_reports, read_labels, relabel

OFFICIAL = {"val2017": 5000, "train2017": 118_287}
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Category ids that COCO reserved for things and never annotated: street sign, hat, shoe, …"""

TABLE = {
    category - 1: index for index, category in enumerate(number for number in range(1, 183) if number not in UNUSED)
} | {IGNORE: IGNORE}
"""Value in a pixel map (category id less 1) -> line in conf/names/coco_stuff.txt, from 0."""


class CocoStuffSettings(Settings):
    """Renumber the pixel maps of COCO-Stuff to its 171 classes: annotations/<part>/<id>_labelTrainIds.png.

    simzss prep coco_stuff root=coco
    """

    root: Path
    """folder with images/<part> of COCO 2017; gets the masks"""
    part: Literal["val2017", "train2017"] = "val2017"
    """val2017 to measure on, train2017 to train on"""
    maps: Path | None = None
    """folder of the pixel maps <id>.png of stuffthingmaps_trainval2017.zip; null: looked for in `root`"""
    overwrite: bool = False
    """make finished masks again"""


def main(arguments: list[str] | None = None) -> None:
    """Read arguments, renumber, report."""
    settings = parse(CocoStuffSettings, arguments)
    root, part = settings.root, settings.part
    photos = find_folder(f"root={root}", [root / "images" / part], f"it gets the photos of {part}.zip")
    maps = settings.maps or _find_maps(root, part)
    names = _names(maps, ".png")
    if not names:
        raise DataError(f"maps={maps} holds no pixel map <id>.png of stuffthingmaps_trainval2017.zip")
    masks = root / "annotations" / part
    jobs = [
        Job(
            (photos / f"{name}.jpg", maps / f"{name}.png"),
            masks / f"{name}_labelTrainIds.png",
            partial(draw, maps / f"{name}.png"),
        )
        for name in sorted(names | _names(photos, ".jpg"))
    ]
    print_reports([make_masks(root, jobs, TABLE.values(), part, OFFICIAL[part], settings.overwrite)])


def draw(path: Path) -> np.ndarray:
    """Return the mask (H, W) uint8 of a pixel map.

    Raises:
        DataError: unreadable, or a label that is no category.
    """
    return relabel(read_labels(path), TABLE, path)


def _find_maps(root: Path, part: str) -> Path:
    """Find the folder of pixel maps: unpacked into `root`, or among the annotations."""
    candidates = [root / inside / part for inside in ("stuffthingmaps_trainval2017", ".", "annotations")]
    for folder in candidates:
        if _names(folder, ".png"):
            return folder
    raise DataError(f"root={root} holds no pixel map <id>.png in "
                     f"{', '.join(str(folder.relative_to(root)) for folder in candidates)}; give maps=DIR")  # fmt: skip


def _names(folder: Path, suffix: str) -> set[str]:
    """Return the names of a folder's images: digits alone, which leaves out masks that lie beside the maps."""
    return {path.stem for path in folder.glob(f"*{suffix}") if path.stem.isdecimal()}


if __name__ == "__main__":
    cli.run_module(main)
