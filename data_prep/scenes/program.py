"""Render synthetic scenes with captions and exact masks.

A stand-in for photographs where there are none: one to four objects that overlap and cast
shadows on one or two textured grounds. Captions name what can be seen; masks give every pixel a class.
"""

import json
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from simzss.errors import DataError
from simzss.settings.base import Settings
from simzss.settings.program import parse
from simzss.settings.types import Seed

from ..outputs import save_file
from .captions import write_caption
from .compose import Scene, render_scene
from .grounds import CLASSES

SPLITS = ("train", "val")
CAPTIONS_PER_IMAGE = 3
Count = Annotated[int, Field(ge=0)]

FORMAT = 1  # raise when the same settings would give other pictures or captions


class ScenesSettings(Settings):
    """Render synthetic scenes with captions and masks.

    simzss prep scenes output=DIR
    """

    output: Path
    """folder to create; the same settings again are recognised, any other content is refused"""
    train: Count = 2000
    """training scenes"""
    val: Count = 150
    """held-out scenes"""
    seed: Seed = 0
    """a scene depends on this, its split and its number alone"""
    size: Annotated[int, Field(ge=64, le=1024)] = 256
    """side of the square pictures in pixels"""
    workers: Count = 0
    """processes that render; 0 takes every core. The result does not depend on it"""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.train + self.val == 0:
            raise ValueError("train + val is 0: nothing to render")
        return self


def make_scene(seed: int, split: str, index: int, size: int) -> tuple[Scene, list[str]]:
    """Render a scene by its split ("train", "val") and number, and write its captions."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = render_scene(rng, size)
    return scene, [write_caption(scene, rng) for _ in range(CAPTIONS_PER_IMAGE)]


def _write_scene(job: tuple[str, str, int, int, int]) -> list[str]:
    """Write picture and mask of one scene; runs in a worker process."""
    folder, split, index, seed, size = job
    scene, captions = make_scene(seed, split, index, size)
    image, mask = Image.fromarray(scene.image), Image.fromarray(scene.mask)
    save_file(Path(folder, "images", split, f"scene_{index:06d}.jpg"), lambda f: image.save(f, "JPEG", quality=92))
    save_file(Path(folder, "annotations", split, f"scene_{index:06d}.png"), lambda f: mask.save(f, "PNG"))
    return captions


def _coco(captions: list[list[str]], size: int) -> dict:
    """Return captions per image in the layout of the COCO caption files; ids count from 1."""
    images = [
        {"id": i + 1, "file_name": f"scene_{i:06d}.jpg", "width": size, "height": size} for i in range(len(captions))
    ]
    flat = [(i + 1, caption) for i, texts in enumerate(captions) for caption in texts]
    annotations = [{"id": k + 1, "image_id": i, "caption": caption} for k, (i, caption) in enumerate(flat)]
    return {"info": {"description": "synthetic scenes"}, "images": images, "annotations": annotations}


def _render_all(folder: Path, settings: ScenesSettings) -> None:
    """Write the whole data set into an existing folder."""
    counts = {"train": settings.train, "val": settings.val}
    jobs = [(str(folder), split, i, settings.seed, settings.size) for split in SPLITS for i in range(counts[split])]
    for split in SPLITS:
        (folder / "images" / split).mkdir(parents=True)
        (folder / "annotations" / split).mkdir(parents=True)
    workers = min(settings.workers or os.cpu_count() or 1, max(1, len(jobs) // 8))
    if workers == 1:
        captions = [_write_scene(job) for job in jobs]
    else:
        # Fresh processes: a fork of a program that has started threads can hang.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            captions = list(pool.map(_write_scene, jobs, chunksize=8))
    for split, part in (("train", captions[: settings.train]), ("val", captions[settings.train :])):
        save_file(folder / f"captions_{split}.json", json.dumps(_coco(part, settings.size)).encode())
    save_file(folder / "classes.txt", ("\n".join(CLASSES) + "\n").encode())
    save_file(folder / "scenes.json", (json.dumps(_recipe(settings), indent=2) + "\n").encode())


def _recipe(settings: ScenesSettings) -> dict[str, Any]:
    """Return all that the content depends on."""
    return {"format": FORMAT} | settings.model_dump(exclude={"output", "workers"})


def _already_there(output: Path, settings: ScenesSettings) -> bool:
    """Tell whether `output` holds exactly this data set.

    Raises:
        DataError: it holds anything else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        found = json.loads((output / "scenes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{output} exists and holds no scenes; remove it or give another output=") from None
    if found != _recipe(settings):
        raise DataError(f"{output} holds scenes with other settings ({found}); remove it or give another output=")
    return True


def generate(settings: ScenesSettings) -> bool:
    """Write the data set, whole or not at all, and return False if the very same one was already there.

    Raises:
        DataError: `output` holds something else, or cannot be written.
    """
    output = settings.output
    if _already_there(output, settings):
        return False
    # Everything goes to a sibling first, on the same file system: a rename makes it visible in one step.
    partial = output.absolute().with_name(f".{output.absolute().name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _render_all(partial, settings)
        partial.replace(output)
    except OSError as error:
        raise DataError(f"cannot write {output}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def main(arguments: list[str] | None = None) -> None:
    """Read arguments, render, report."""
    settings = parse(ScenesSettings, arguments)
    started = time.perf_counter()
    if not generate(settings):
        print(f"{settings.output} already holds these scenes")
        return
    count, seconds = settings.train + settings.val, time.perf_counter() - started
    print(
        f"{count} scenes, {len(CLASSES)} classes in {settings.output} ({seconds:.1f} s, {count / seconds:.0f} a second)"
    )
