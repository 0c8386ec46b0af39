"""Renumber the pixel maps of COCO-Stuff to its 171 classes.

    python -m data_prep.coco_stuff root=coco

`root` holds images/val2017 of the COCO 2017 download and the maps of stuffthingmaps_trainval2017.zip, unpacked there
or, as the set's authors advise, in `root`/annotations.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.mask_files import IGNORE, Job, find_folder, make_masks, print_reports, read_labels, relabel
from simzss.config import parse_program
from simzss.errors import InputError, run_program

OFFICIAL = 5000
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Category ids that COCO reserved for things and never annotated: street sign, hat, shoe, …"""

TABLE = {
    category - 1: index for index, category in enumerate(number for number in range(1, 183) if number not in UNUSED)
} | {IGNORE: IGNORE}
"""Value in a pixel map (category id less 1) -> line in conf/names/coco_stuff.txt, from 0."""


@dataclass
class CocoStuffConfig:
    """COCO-Stuff pixel maps -> annotations/val2017/<id>_labelTrainIds.png (0 to 170, 255 unlabelled).

    root: folder with images/val2017; gets the masks
    maps: folder of the pixel maps <id>.png; null looks for them in `root`
    overwrite: makes finished masks again
    """

    root: str = "???"
    maps: str | None = None
    overwrite: bool = False


def main() -> None:
    """Read arguments, renumber, report."""
    config = parse_program(CocoStuffConfig)
    root = Path(config.root)
    photos = find_folder(f"root={root}", [root / "images/val2017"], "it gets the photos of val2017.zip")
    maps = Path(config.maps) if config.maps else _find_maps(root)
    names = _names(maps, ".png")
    if not names:
        raise InputError(f"maps={maps} holds no pixel map <id>.png of stuffthingmaps_trainval2017.zip")
    masks = root / "annotations/val2017"
    jobs = [
        Job(
            (photos / f"{name}.jpg", maps / f"{name}.png"),
            masks / f"{name}_labelTrainIds.png",
            partial(draw, maps / f"{name}.png"),
        )
        for name in sorted(names | _names(photos, ".jpg"))
    ]
    print_reports([make_masks(jobs, TABLE.values(), "val2017", OFFICIAL, config.overwrite)])


def draw(path: Path) -> np.ndarray:
    """Mask (H, W) uint8 of a pixel map.

    Raises:
        InputError: unreadable, or a label that is no category.
    """
    return relabel(read_labels(path), TABLE, path)


def _find_maps(root: Path) -> Path:
    """The folder of pixel maps: unpacked into `root`, or among the annotations."""
    candidates = [root / inside for inside in ("stuffthingmaps_trainval2017/val2017", "val2017", "annotations/val2017")]
    for folder in candidates:
        if _names(folder, ".png"):
            return folder
    raise InputError(f"root={root} holds no pixel map <id>.png in "
                     f"{', '.join(str(folder.relative_to(root)) for folder in candidates)}; give maps=DIR")  # fmt: skip


def _names(folder: Path, suffix: str) -> set[str]:
    """Names of the images of a folder: digits alone, which leaves out masks that lie beside the maps."""
    return {path.stem for path in folder.glob(f"*{suffix}") if path.stem.isdecimal()}


if __name__ == "__main__":
    run_program(main)
