"""Renumber the pixel maps of COCO-Stuff to its 171 classes.

    python -m data_prep.coco_stuff root=coco

`root` holds images/val2017 of the COCO 2017 download and the maps of stuffthingmaps_trainval2017.zip, unpacked there
or, as the set's authors advise, in `root`/annotations. With part=train2017 the same for the photos to train on.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.mask_files import IGNORE, Job, find_folder, make_masks, print_reports, read_labels, relabel
from simzss.config import parse_program
from simzss.errors import InputError, nearest, run_program

OFFICIAL = {"val2017": 5000, "train2017": 118_287}
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Category ids that COCO reserved for things and never annotated: street sign, hat, shoe, …"""

TABLE = {
    category - 1: index for index, category in enumerate(number for number in range(1, 183) if number not in UNUSED)
} | {IGNORE: IGNORE}
"""Value in a pixel map (category id less 1) -> line in conf/names/coco_stuff.txt, from 0."""


@dataclass
class CocoStuffConfig:
    """COCO-Stuff pixel maps -> annotations/<part>/<id>_labelTrainIds.png (0 to 170, 255 unlabelled).

    root: folder with images/<part>; gets the masks
    part: val2017 to measure on, train2017 to train on
    maps: folder of the pixel maps <id>.png; null looks for them in `root`
    overwrite: makes finished masks again
    """

    root: str = "???"
    part: str = "val2017"
    maps: str | None = None
    overwrite: bool = False


def main() -> None:
    """Read arguments, renumber, report."""
    config = parse_program(CocoStuffConfig)
    root, part = Path(config.root), config.part
    if part not in OFFICIAL:
        raise InputError(f"part={part} is unknown; {nearest(part, OFFICIAL)}")
    photos = find_folder(f"root={root}", [root / "images" / part], f"it gets the photos of {part}.zip")
    maps = Path(config.maps) if config.maps else _find_maps(root, part)
    names = _names(maps, ".png")
    if not names:
        raise InputError(f"maps={maps} holds no pixel map <id>.png of stuffthingmaps_trainval2017.zip")
    masks = root / "annotations" / part
    jobs = [
        Job(
            (photos / f"{name}.jpg", maps / f"{name}.png"),
            masks / f"{name}_labelTrainIds.png",
            partial(draw, maps / f"{name}.png"),
        )
        for name in sorted(names | _names(photos, ".jpg"))
    ]
    print_reports([make_masks(jobs, TABLE.values(), part, OFFICIAL[part], config.overwrite)])


def draw(path: Path) -> np.ndarray:
    """Mask (H, W) uint8 of a pixel map.

    Raises:
        InputError: unreadable, or a label that is no category.
    """
    return relabel(read_labels(path), TABLE, path)


def _find_maps(root: Path, part: str) -> Path:
    """The folder of pixel maps: unpacked into `root`, or among the annotations."""
    candidates = [root / inside / part for inside in ("stuffthingmaps_trainval2017", ".", "annotations")]
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
