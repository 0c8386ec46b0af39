"""Damage to files: bits that flip, and files that are cut off; noticed by their reader, or without effect."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from simzss.data.shards import Sample, Skipped, count_samples, read_shards
from simzss.errors import InputError
from simzss.evaluation.counts import load_counts
from simzss.features.store import FeatureStore
from simzss.models.checkpoint import load_model
from simzss.program import run_program
from simzss.training.checkpoint_io import read_checkpoint
from tests.faults.kinds import SURVIVED, Fault, Verdict, judged
from tests.faults.process import Child
from tests.faults.world import World


@dataclass(frozen=True)
class Stored:
    """A kind of stored file.

    Attributes:
        folder: of the world, which is copied before a file of it is damaged.
        pattern: of the files.
        read: prints a digest of all that a reader of the folder gets; None: the program of the folder runs again.
    """

    folder: str
    pattern: str
    read: Callable[[Path], str] | None


def _shards(folder: Path) -> str:
    paths = sorted(map(str, folder.glob("*.tar")))
    samples = list(read_shards(paths))
    skipped = [sample.reason for sample in samples if isinstance(sample, Skipped)]
    if skipped:
        raise InputError(f"skipped: {skipped[0]}")
    found = [
        (one.key, one.image, one.captions, one.file_name, one.image_id) for one in samples if isinstance(one, Sample)
    ]
    return _digest(repr([found, count_samples(paths)]).encode())


def _model(folder: Path) -> str:
    model = load_model(folder)
    return _digest(repr([model.info, model.text_pooling, _state(model.state_dict())]).encode())


def _features(folder: Path) -> str:
    store = FeatureStore.open(folder)
    store.place(torch.device("cpu"), "host")
    found = store.rows(torch.arange(len(store)), torch.zeros(len(store), dtype=torch.long))
    tensors = [found.cls.double().numpy().tobytes(), found.patches.double().numpy().tobytes()]
    return _digest(repr([store.metadata, store.captions, store.skipped, tensors]).encode())


def _checkpoint(folder: Path) -> str:
    content = read_checkpoint(next(folder.glob("epoch*.ckpt")))
    return _digest(repr([content["global_step"], _state(content["state_dict"])]).encode())


def _counts(folder: Path) -> str:
    found = [load_counts(path) for path in sorted(folder.glob("*.safetensors"))]
    return _digest(repr([(one.images, one.classes, _state({"counts": one.per_image})) for one in found]).encode())


def _state(tensors: Mapping[str, Tensor]) -> list[tuple[str, bytes]]:
    return [(name, value.numpy().tobytes()) for name, value in sorted(tensors.items())]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


STORED = {
    "shard": Stored("captions", "*.tar", _shards),
    "shards' index.json": Stored("captions", "index.json", _shards),
    "model.safetensors": Stored("train/model", "model.safetensors", _model),
    "config.json of a model": Stored("train/model", "config.json", _model),
    "SHA256SUMS of a model": Stored("train/model", "SHA256SUMS", _model),
    "features": Stored("cache", "features-*", _features),
    "features' index.json": Stored("cache", "index.json", _features),
    "checkpoint": Stored("train/checkpoints", "epoch*.ckpt", _checkpoint),
    "counts": Stored("eval/counts", "*.safetensors", _counts),
    "done markers of captions": Stored("captions", ".tasks/[0-9]*", None),
    "done markers of features": Stored("cache", ".tasks/[0-9]*", None),
}


def damaged(world: World, fault: Fault, home: Path) -> Verdict:
    """Flip a bit of a file, or cut it off, and read it."""
    rng, stored = random.Random(repr(fault)), STORED[fault.target]
    folder = home / "copy"
    shutil.copytree(world.folder / stored.folder, folder, symlinks=False)
    path = rng.choice(sorted(path for path in folder.glob(stored.pattern) if path.is_file()))
    data = bytearray(path.read_bytes())
    if fault.kind == "file cut off":
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    if stored.read is None:
        job = world.jobs[stored.folder]
        for listing in folder.glob("index.json"):  # unfinished work is gone over again
            listing.unlink()
        return judged(job, folder, home)
    return _read(world, stored, fault, folder, home)


def _read(world: World, stored: Stored, fault: Fault, folder: Path, home: Path) -> Verdict:
    assert stored.read is not None
    ended = Child(_reading(stored.read, folder), home / "log").wait()
    if ended.fault:
        return Verdict(ended.fault, ended.text[-1500:])
    if ended.code != 0 or ended.text.strip() == expected(world, fault.target, home):
        return SURVIVED  # noticed, or a bit that means nothing
    return Verdict("silent", "read as if it were whole")


def expected(world: World, target: str, home: Path) -> str:
    """Return what a reader gets of the undamaged files, read once for a whole campaign."""
    kept = world.folder / "digests.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if target not in known:
        stored = STORED[target]
        assert stored.read is not None
        ended = Child(_reading(stored.read, world.folder / stored.folder), home / "whole.log").wait()
        if ended.code != 0:
            raise RuntimeError(f"{target} cannot be read undamaged: {ended.text[-1500:]}")
        known[target] = ended.text.strip()
        kept.write_text(json.dumps(known))
    return known[target]


def _reading(read: Callable[[Path], str], folder: Path) -> Callable[[], None]:
    def work() -> None:
        torch.set_num_threads(1)
        run_program(lambda: print(read(folder)))

    return work
