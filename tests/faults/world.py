"""What the programs of the campaign work on, and each of them with the output of an undisturbed run."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.process import run
from tests.integration.test_measure import WHOLE, write_benchmark
from tests.support.caching import cache_arguments
from tests.support.captioned import captioned_photos
from tests.support.mask_runs import mask_arguments, write_model, write_squares
from tests.support.models import save_backbone
from tests.support.training import coloured_shards, tiny_arguments

_NARROW = ("text.width=16", "text.layers=1", "trainer.epochs=4")
_TIMES = ("seconds", "samples_per_s", "time", "memory")
"""In the names of columns of metrics that no two runs share."""


@dataclass
class Job:
    """A program.

    Attributes:
        name: of the verb.
        command: arguments for an output folder.
        resume: arguments that its messages name for going on; the same command where it is None.
        expected: digest of each file of an undisturbed run.
        seconds: that it takes.
        size: bytes of its folder at the end.
    """

    name: str
    command: Callable[[Path], list[str]]
    resume: tuple[str, ...] = ()
    expected: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    size: int = 0

    def again(self, output: Path) -> list[str]:
        """Return the command that goes on."""
        return [*self.command(output), *self.resume]


@dataclass
class World:
    """Inputs in a folder, programs over them, and their undisturbed outputs in `folder/NAME`."""

    folder: Path
    jobs: dict[str, Job]

    @classmethod
    def make(cls, folder: Path) -> "World":
        """Write the inputs and run every program once.

        Raises:
            RuntimeError: one fails undisturbed.
        """
        _write_inputs(folder)
        weights = f"backbone.weights={folder}/vit.safetensors"
        shards, eval_of = folder / "shards", ["eval", f"model={folder}/train/model", f"benchmark.root={folder}/voc"]
        images, captions = captioned_photos(folder / "photos", 60)
        photos = [str(path) for path in sorted((folder / "voc" / "JPEGImages").iterdir())]
        jobs = [
            Job("train", lambda out: ["train", *tiny_arguments(shards, out, weights, *_NARROW)], ("resume=last",)),
            Job("train-masks", lambda out: ["train-masks", *mask_arguments(folder / "masks", out)], ("resume=last",)),
            Job("cache", lambda out: cache_arguments(shards, out, weights)),
            Job("captions", lambda out: ["prep", "captions", f"images={images}", f"captions={captions}",
                                         "samples_per_shard=5", "executor=serial", f"output={out}"]),
            Job("eval", lambda out: [*eval_of, "benchmark=voc20", *WHOLE, "save_masks=true", "overlays=2",
                                     f"output_dir={out}"]),
            Job("segment", lambda out: ["segment", *photos, f"model={folder}/train/model", "classes=cat,dog,car",
                                        *WHOLE, f"output_dir={out}"]),
            Job("threshold", lambda out: ["threshold", *eval_of[1:], "benchmark=voc21", *WHOLE, f"output_dir={out}"]),
            Job("report", lambda out: ["report", f"{folder}/eval", f"{folder}/eval2", f"output_dir={out}"]),
        ]  # fmt: skip
        world = cls(folder, {job.name: job for job in jobs})
        for job in jobs:
            if job.name == "report":
                shutil.copytree(folder / "eval", folder / "eval2")
            output = folder / job.name
            ended = run(job.command(output), folder / f"{job.name}.log")
            if ended.code != 0:
                raise RuntimeError(f"{job.name} fails undisturbed: {ended.text[-2000:]}")
            job.expected, job.seconds, job.size = digests(output), ended.seconds, size_of(output)
        return world


def _write_inputs(folder: Path) -> None:
    """Write shards, a benchmark, and what training with masks needs."""
    coloured_shards(folder / "shards")
    save_backbone(folder / "vit.safetensors")
    write_benchmark(folder / "voc", sizes=[(64, 64), (90, 60), (50, 77), (64, 48), (33, 35)] * 3)
    (folder / "masks").mkdir()
    write_model(folder / "masks")
    write_squares(folder / "masks" / "voc")


def digests(output: Path) -> dict[str, str]:
    """Return the digest of what counts in a folder: no locks, no progress, no checkpoints, no times."""
    found = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(output).parts)
        if path.is_file() and not hidden and not name.startswith("checkpoints/"):
            found[name] = hashlib.sha256(_content(path, output)).hexdigest()
    return found


def _content(path: Path, output: Path) -> bytes:
    """Return what two runs have in common of a file: not the name of their folder, nor how long they took."""
    if path.name == "metrics.csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                {key: value for key, value in row.items() if value and not any(word in key for word in _TIMES)}
                for row in csv.DictReader(file)
            ]
        return json.dumps(rows, sort_keys=True).encode()
    data = path.read_bytes().replace(str(output).encode(), b"OUTPUT")
    return data.replace(b"resume: last", b"resume: null")


def size_of(folder: Path) -> int:
    """Return the bytes that a folder holds, in blocks of the system."""
    return sum(-(-path.lstat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())
