"""Render synthetic scenes with captions and exact masks: `python -m data_prep.scenes output=DIR`.

A stand-in for photographs where there are none: one to four objects (`data_prep.scenes.objects`) that overlap and cast
shadows on one or two textured grounds. Captions name what can be seen; masks give every pixel a class.
"""

import json
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.scenes.captions import write_caption
from data_prep.scenes.compose import Scene, render_scene
from data_prep.scenes.grounds import CLASSES
from simzss.config import parse_program
from simzss.errors import InputError

SPLITS = ("train", "val")
CAPTIONS_PER_IMAGE = 3
FORMAT = 1  # raise when the same settings would give other pictures or captions


@dataclass
class ScenesConfig:
    """Render synthetic scenes with captions and masks.

    output: folder to create; the same settings again are recognised, any other content is refused
    train: number of training scenes
    val: number of held-out scenes
    seed: every scene depends only on this, its split and its number
    size: side of the square pictures in pixels
    workers: processes that render; 0 takes every CPU. The result does not depend on it
    """

    output: str
    train: int = 2000
    val: int = 150
    seed: int = 0
    size: int = 256
    workers: int = 0


def make_scene(seed: int, split: str, index: int, size: int) -> tuple[Scene, list[str]]:
    """The scene of a split ("train", "val") with this number, and its captions; depends on nothing else."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = render_scene(rng, size)
    return scene, [write_caption(scene, rng) for _ in range(CAPTIONS_PER_IMAGE)]


def _write_scene(job: tuple[str, str, int, int, int]) -> list[str]:
    """Write picture and mask of one scene; runs in a worker process."""
    folder, split, index, seed, size = job
    scene, captions = make_scene(seed, split, index, size)
    Image.fromarray(scene.image).save(Path(folder, "images", split, f"scene_{index:06d}.jpg"), quality=92)
    Image.fromarray(scene.mask).save(Path(folder, "annotations", split, f"scene_{index:06d}.png"))
    return captions


def _coco(captions: list[list[str]], size: int) -> dict:
    """Captions per image in the layout of the COCO caption files; ids count from 1."""
    images = [
        {"id": i + 1, "file_name": f"scene_{i:06d}.jpg", "width": size, "height": size} for i in range(len(captions))
    ]
    flat = [(i + 1, caption) for i, texts in enumerate(captions) for caption in texts]
    annotations = [{"id": k + 1, "image_id": i, "caption": caption} for k, (i, caption) in enumerate(flat)]
    return {"info": {"description": "synthetic scenes"}, "images": images, "annotations": annotations}


def _render_all(folder: Path, config: ScenesConfig) -> None:
    """Write the whole data set into an existing folder."""
    counts = {"train": config.train, "val": config.val}
    jobs = [(str(folder), split, i, config.seed, config.size) for split in SPLITS for i in range(counts[split])]
    for split in SPLITS:
        (folder / "images" / split).mkdir(parents=True)
        (folder / "annotations" / split).mkdir(parents=True)
    workers = min(config.workers or os.cpu_count() or 1, max(1, len(jobs) // 8))
    if workers == 1:
        captions = [_write_scene(job) for job in jobs]
    else:
        # Fresh processes: a fork of a program that has started threads can hang.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            captions = list(pool.map(_write_scene, jobs, chunksize=8))
    for split, part in (("train", captions[: config.train]), ("val", captions[config.train :])):
        (folder / f"captions_{split}.json").write_text(json.dumps(_coco(part, config.size)), encoding="utf-8")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    (folder / "scenes.json").write_text(json.dumps(_settings(config), indent=2) + "\n", encoding="utf-8")


def _settings(config: ScenesConfig) -> dict[str, object]:
    """What the content depends on."""
    return {"format": FORMAT} | {k: v for k, v in asdict(config).items() if k not in ("output", "workers")}


def _already_there(output: Path, config: ScenesConfig) -> bool:
    """Whether `output` holds exactly this data set; raises InputError where it holds anything else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        found = json.loads((output / "scenes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{output} exists and holds no scenes; remove it or give another output=") from None
    if found != _settings(config):
        raise InputError(f"{output} holds scenes with other settings ({found}); remove it or give another output=")
    return True


def generate(config: ScenesConfig) -> bool:
    """Write the data set to `config.output`, whole or not at all; False if the very same one was already there.

    Raises:
        InputError: impossible settings, or `output` holds something else.
    """
    if min(config.train, config.val, config.seed, config.workers) < 0 or config.train + config.val == 0:
        raise InputError("train, val, seed and workers must not be negative, and train + val not 0")
    if not 64 <= config.size <= 1024:
        raise InputError(f"size={config.size} is outside 64..1024 pixels")
    output = Path(config.output)
    if _already_there(output, config):
        return False
    # Everything goes to a sibling first, on the same file system: a rename makes it visible in one step.
    partial = output.absolute().with_name(f".{output.absolute().name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _render_all(partial, config)
        partial.replace(output)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def main() -> None:
    """Command line."""
    config = parse_program(ScenesConfig)
    started = time.perf_counter()
    if not generate(config):
        print(f"{config.output} already holds these scenes")
        return
    count, seconds = config.train + config.val, time.perf_counter() - started
    print(
        f"{count} scenes, {len(CLASSES)} classes in {config.output} ({seconds:.1f} s, {count / seconds:.0f} a second)"
    )
