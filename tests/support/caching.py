"""Shards of small JPEGs, and caches of a tiny ViT's features of them."""

import io
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from simzss.data.shards import Sample, write_shard
from simzss.features.build import CacheSummary, build_cache
from simzss.features.settings import FeatureSettings
from tests.support.files import PIPELINE, caption, contents
from tests.support.models import make_backbone

# Of 17 vectors of 64 numbers each: 4 pictures in bfloat16 fill a file.
FILE_MB = 0.009
SIZES = (10, 3, 5)


def jpeg(seed: int, size: tuple[int, int] = (160, 130)) -> bytes:
    """Encode a smooth photo, different for every seed: its side of 64 pixels is decoded at a half of its size."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def jpeg_sample(index: int, image: bytes | None = None) -> Sample:
    """Make a sample with two captions, which tell its index."""
    captions = (caption(f"dog number {index}", "dog"), caption(f"number {index} écoute"))
    return Sample(f"{index:09d}", jpeg(index) if image is None else image, "jpg", captions, f"{index}.jpg", index)


def jpeg_shards(folder: Path, sizes=SIZES, broken=()) -> list[str]:
    """Write shards of so many samples each, counted through; those of `broken` hold no image. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, first = [], 0
    for number, size in enumerate(sizes):
        path = folder / f"shard-{number:06d}.tar"
        indices = range(first, first + size)
        write_shard(path, [jpeg_sample(i, b"no image" if i in broken else None) for i in indices], PIPELINE)
        paths.append(str(path))
        first += size
    return paths


def make_cache(urls, output: Path, backbone=None, precision="32-true", **settings) -> CacheSummary:
    """Cache the tiny ViT's features, on the CPU."""
    options = {"file_mb": FILE_MB, "batch_size": 3, "num_workers": 0} | settings
    backbone = make_backbone() if backbone is None else backbone
    return build_cache(backbone, urls, output, FeatureSettings(**options), torch.device("cpu"), precision)


@contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    """Let the system refuse files of more bytes, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def copied(folder: Path, target: Path) -> Path:
    """Copy the files of a folder; return the target."""
    for name, data in contents(folder).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    return target


def stored_tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Read the tensors (V, …) of each key in the order of the index, by the safetensors library alone."""
    found = {}
    for file in json.loads((folder / "index.json").read_text())["files"]:
        tensors = load_file(folder / file["name"])
        texts = json.loads(tensors.pop("texts").numpy().tobytes())
        for row, (key, _) in enumerate(texts["images"]):
            assert key not in found
            found[key] = {name: tensor[row] for name, tensor in tensors.items()}
    return found


def cache_arguments(shards: Path, output: Path, *extra: str) -> list[str]:
    """Return the arguments of `simzss cache` for the tiny ViT."""
    return [
        "cache",
        "backbone=dino_vits16",
        "backbone.timm_name=test_vit.r160_in1k",
        "backbone.weights=random",
        "backbone.image_size=64",
        f"data.shards={shards}/*.tar",
        "data.num_workers=0",
        f"output={output}",
        f"file_mb={FILE_MB}",
        "batch_size=3",
        "precision=32-true",
        "accelerator=cpu",
        *extra,
    ]
