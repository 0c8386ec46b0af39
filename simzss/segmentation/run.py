"""`simzss segment`: label photo files with the user's words."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from PIL import Image

from simzss import config as conf
from simzss.data.shards import decode_image
from simzss.errors import InputError
from simzss.segmentation.background import Background
from simzss.segmentation.prediction import Counts
from simzss.segmentation.settings import build_segmenter, check_settings, load_configured, load_configured_sam
from simzss.visualize import index_mask, overlay

log = logging.getLogger(__name__)


def segment_files(config: DictConfig, images: list[Path]) -> Iterator[Path]:
    """Write `<stem>_overlay.png` and `<stem>_mask.png` for each image; yields their paths.

    Raises:
        InputError: no image, one that is missing or unreadable, two of the same name, no classes.
    """
    conf.require_complete(config)
    plain: dict[str, Any] = conf.to_plain(config)
    classes = parse_classes(plain["classes"])
    _check_images(images)
    check_settings(plain)
    model, settings = load_configured(plain)
    readout = plain["readout"] or settings.get("readout", "concept")
    segmenter = build_segmenter(plain, model, readout, load_configured_sam(plain))
    background = plain["background"] | {"words": tuple(plain["background"]["words"])}
    segmenter.set_classes(classes, Background(**background))
    output = Path(plain["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    regions: Counts | None = None
    for start in range(0, len(images), segmenter.ahead):
        chunk = images[start : start + segmenter.ahead]
        photos, unreadable = _read(chunk)
        # What was read before a broken file is still worth its mask.
        for path, photo, prediction in zip(chunk, photos, segmenter.predict_batch(photos), strict=False):
            drawn = output / f"{path.stem}_overlay.png"
            names, background = prediction.class_names, segmenter.background_index
            overlay(photo, prediction.mask.numpy(), names, background=background).save(drawn)
            yield drawn
            indices = output / f"{path.stem}_mask.png"
            index_mask(prediction.mask.numpy(), num_classes=len(prediction.class_names)).save(indices)
            yield indices
            if prediction.regions is not None:
                # one kind of refinement makes one kind of counts
                regions = prediction.regions if regions is None else regions + prediction.regions  # type: ignore[operator]
        if unreadable is not None:
            raise unreadable
    if regions is not None:
        log.info("regions: %s", _summary(regions.by_name(segmenter.class_names)))


def parse_classes(text: str | list[str]) -> list[list[str]]:
    """`cat/kitten,dog` -> [[cat, kitten], [dog]]; a list is taken entry by entry.

    Raises:
        InputError: nothing in it.
    """
    entries = text.split(",") if isinstance(text, str) else [str(entry) for entry in text]
    groups = [[name.strip() for name in entry.split("/")] for entry in entries if entry.strip()]
    if not groups:
        raise InputError('classes is empty: give names such as classes="cat,dog"')
    return groups


def _summary(counts: Mapping[str, Any]) -> str:
    """Counts of regions on one line; the classes that were lost by name."""
    sums = {key: sum(value.values()) if isinstance(value, Mapping) else value for key, value in counts.items()}
    line = ", ".join(f"{key} {value}" for key, value in sums.items())
    return f"{line} ({', '.join(counts['lost'])})" if counts["lost"] else line


def _read(paths: list[Path]) -> tuple[list[Image.Image], InputError | None]:
    """The images up to the first that cannot be read, and the error of that one."""
    photos: list[Image.Image] = []
    for path in paths:
        try:
            photos.append(decode_image(path.read_bytes()))  # upright, as training saw its photos
        except (OSError, ValueError) as error:
            reason = str(error).removeprefix("unreadable image: ")
            return photos, InputError(f"{path} is no readable image: {reason}")
    return photos, None


def _check_images(images: list[Path]) -> None:
    if not images:
        raise InputError("no image given: simzss segment IMAGE… model=DIR classes=…")
    for path in images:
        if not path.is_file():
            raise InputError(f"image {path} does not exist")
    stems = [path.stem for path in images]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise InputError(f"two images are named {twice!r}: their results would overwrite each other")
