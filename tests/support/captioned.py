"""A small set of captioned photos, enough work for a program to be disturbed in."""

import random
from pathlib import Path

from tests.support.files import make_image_folder, write_coco_json

_WHO = ("a dog", "two men", "The old woman", "Three small children", "a brown horse", "someone", "the tennis player")
_DOES = ("runs over", "is sitting on", "looks at", "jumps across", "walks past", "plays beside")
_WHAT = (
    "a wooden bench",
    "the green grass",
    "some tall buildings",
    "a red fire hydrant",
    "the sandy beach",
    "two cars",
)


def captioned_photos(folder: Path, count: int) -> tuple[Path, Path]:
    """Write a folder of photos, and a COCO captions file with five captions for each, most of them different."""
    rng = random.Random(0)
    names = [f"{number:05d}.png" for number in range(count)]
    captions = {
        name: [
            f"{rng.choice(_WHO)} {rng.choice(_DOES)} {rng.choice(_WHAT)} near house {rng.random():.4f}"
            for _ in range(5)
        ]
        for name in names
    }
    return make_image_folder(folder / "images", names), write_coco_json(folder / "captions.json", captions)
