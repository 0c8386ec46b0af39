"""Small files of every kind that the programs read: photos, tars, shards, COCO captions."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simzss.atomic import write_json
from simzss.checksums import sha256_of
from simzss.concepts.concept import Caption, Concept
from simzss.data.shards import Sample, count_samples, write_shard

PIPELINE = {"name": "en_test", "version": "1", "spacy": "3"}


def picture(seed: int = 0, size: tuple[int, int] = (12, 8)) -> Image.Image:
    """A photo of noise, different for every seed; `size` is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def image_bytes(seed: int = 0, size: tuple[int, int] = (12, 8), form: str = "png") -> bytes:
    """An encoded `picture`."""
    return encode(picture(seed, size), form)


def encode(image: Image.Image, form: str = "png") -> bytes:
    """A picture's file as bytes."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def make_image_folder(folder: Path, names: Iterable[str]) -> Path:
    """A folder with one small photo of each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        picture(seed).save(folder / name)
    return folder


def write_coco_json(path: Path, captions: Mapping[str, Sequence[str]]) -> Path:
    """A COCO captions file; image ids count from 100."""
    ids = {name: 100 + i for i, name in enumerate(captions)}
    images = [{"id": ids[name], "file_name": name, "width": 12, "height": 8} for name in captions]
    flat = [(ids[name], text) for name, texts in captions.items() for text in texts]
    annotations = [{"id": k, "image_id": i, "caption": text} for k, (i, text) in enumerate(flat)]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}), encoding="utf-8")
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A plain tar of files, in order."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def caption(text: str, *words: str) -> Caption:
    """A caption with these words of it as concepts, their lower case as lemma."""
    places = [(word, text.index(word)) for word in words]
    return Caption(text, tuple(Concept(word, word.lower(), at, at + len(word)) for word, at in places))


def sample(index: int, captions: Sequence[Caption] | None = None, image: bytes | None = None) -> Sample:
    """A sample whose key, image and caption tell its index."""
    captions = captions if captions is not None else [caption(f"dog number {index}", "dog")]
    image = image if image is not None else image_bytes(index)
    return Sample(f"{index:09d}", image, "png", tuple(captions), f"{index}.png", index)


def make_shards(folder: Path, sizes: Sequence[int]) -> list[str]:
    """Shards of so many samples each, their keys counted through; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, first = [], 0
    for number, size in enumerate(sizes):
        path = folder / f"shard-{number:06d}.tar"
        write_shard(path, [sample(first + i) for i in range(size)], PIPELINE)
        paths.append(str(path))
        first += size
    return paths


def list_shards(shards: list[str]) -> list[str]:
    """Write the index beside shards of a folder, as data_prep.captions does; returns the paths."""
    listed = [
        {"name": path.name, "samples": count_samples([str(path)]), "bytes": path.stat().st_size,
         "sha256": sha256_of(path)}
        for path in map(Path, shards)
    ]  # fmt: skip
    write_json(Path(shards[0]).parent / "index.json", {"complete": True, "shards": listed})
    return shards


def break_off(shard: str, key: str) -> None:
    """Cut a shard in the image of one of its samples."""
    whole = Path(shard).read_bytes()
    Path(shard).write_bytes(whole[: whole.index(f"{key}.png".encode()) + 700])


def annotation(**changes: Any) -> bytes:
    """The JSON member of a sample, with changes."""
    record = {"format_version": 1, "pipeline": PIPELINE, "captions": [{"text": "a dog", "concepts": []}]}
    return json.dumps(record | changes).encode()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
