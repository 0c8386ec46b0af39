"""Photos of evaluation sets by perceptual hash: what is like one of them must not be trained on."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from simzss.atomic import atomic_write
from simzss.data.images import decode_image
from simzss.data.settings import BenchmarkSettings
from simzss.errors import DataError
from simzss.progress import progress
from simzss.settings.compose import load_choice

from .duplicates import FINGERPRINT_VERSION, fingerprint, load_arrays

if TYPE_CHECKING:
    from simzss.data.benchmark import Benchmark


@dataclass(frozen=True)
class EvaluationPhotos:
    """The photos of the evaluation sets below some folders.

    Attributes:
        names: "set: photo" by path, in the order of the sets; a photo of several sets has the names of all.
        found: sets that are there.
        missing: sets that are not, with the reason.
        identity: changes with the name or size of any photo, wherever the folder is.
        stamp: changes with its path or time as well.
    """

    names: dict[Path, str]
    found: tuple[str, ...]
    missing: dict[str, str]
    identity: str
    stamp: str

    @classmethod
    def find(cls, roots: Sequence[Path]) -> "EvaluationPhotos":
        """Find the sets of `benchmark=all` below each folder.

        Raises:
            DataError: no such folder, it holds none of the sets, or a part of one: what is missing would go unseen.
        """
        sets: dict[Path, list[str]] = {}
        missing: dict[str, str] = {}
        found: set[str] = set()
        for root in roots:
            if not root.is_dir():
                raise DataError(f"filters.evaluation_root={root} is no folder")
            absent: dict[str, str] = {}
            for name, benchmark in _benchmarks(root):
                if isinstance(benchmark, str):
                    absent[name] = benchmark
                    continue
                found.add(name)
                for photo in benchmark.names:
                    sets.setdefault(benchmark.image_path(photo), []).append(name)
            missing = absent | missing
            if len(absent) == len(load_choice("benchmark", "all")["sets"]):
                listed = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
                raise DataError(f"filters.evaluation_root={root} holds none of the evaluation sets ({listed})")
        names = {path: f"{', '.join(dict.fromkeys(named))}: {path.stem}" for path, named in sets.items()}
        states = [path.stat() for path in names]
        sizes = [[name, state.st_size] for name, state in zip(names.values(), states, strict=True)]
        times = [[str(path), state.st_mtime_ns] for path, state in zip(names, states, strict=True)]
        return cls(
            names,
            tuple(sorted(found)),
            {name: reason for name, reason in missing.items() if name not in found},
            _digest([FINGERPRINT_VERSION, sizes]),
            _digest([FINGERPRINT_VERSION, sizes, times]),
        )


def _benchmarks(root: Path) -> Iterator[tuple[str, "Benchmark | str"]]:
    """Yield each set of `benchmark=all` below a folder, or why it is not there."""
    from simzss.data.benchmark import Benchmark  # torch, which workers do without

    for name in load_choice("benchmark", "all")["sets"]:
        settings = BenchmarkSettings.of({**load_choice("benchmark", name), "root": str(root)})
        if Benchmark.find_root(settings) is None:
            yield name, f"{root} has no {settings.images} and {settings.masks}"
        else:
            yield name, Benchmark(settings)


def _digest(content: object) -> str:
    text = json.dumps(content).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


@dataclass(frozen=True)
class EvaluationImages:
    """Perceptual hashes of evaluation photos.

    Attributes:
        hashes: (n,) uint64.
        names: of the n photos.
        stamp: of the photos when they were hashed.
        distance: bits by which an image that counts as a copy differs at most.
    """

    hashes: np.ndarray
    names: tuple[str, ...]
    stamp: str
    distance: int

    def __len__(self) -> int:
        return len(self.names)

    def match(self, number: int) -> str | None:
        """Return the name of the photo with the nearest hash, the first of several; None beyond the distance."""
        if not len(self):
            return None
        bits = np.bitwise_count(self.hashes ^ np.uint64(number))
        best = int(bits.argmin())
        return self.names[best] if bits[best] <= self.distance else None

    @classmethod
    def compute(cls, photos: EvaluationPhotos, distance: int) -> "EvaluationImages":
        """Hash every photo.

        Raises:
            DataError: a photo cannot be read.
        """
        hashes = np.zeros(len(photos.names), np.uint64)
        paths = progress(photos.names, len(photos.names), "hashes of evaluation photos", "photos")
        for index, path in enumerate(paths):
            try:
                data = path.read_bytes()
                hashes[index] = fingerprint(data, decode_image(data))[1]
            except (OSError, ValueError) as error:
                raise DataError(f"evaluation photo {path} cannot be read: {error}") from error
        return cls(hashes, tuple(photos.names.values()), photos.stamp, distance)

    @classmethod
    def kept(cls, path: Path, photos: EvaluationPhotos, distance: int) -> "EvaluationImages":
        """Read the hashes that an earlier run kept in `path`; none, or of other photos: hash now and keep them there.

        Raises:
            DataError: a photo cannot be read.
            OSError: `path` cannot be written.
        """
        try:
            images = cls.load(path, distance)
        except DataError:
            images = None
        if images is None or images.stamp != photos.stamp:
            images = cls.compute(photos, distance)
            atomic_write(path, images.save)
        return images

    def save(self, stream: BinaryIO) -> None:
        """Write to an open file."""
        text = json.dumps({"names": self.names, "stamp": self.stamp})
        np.savez(
            stream,
            version=np.int64(FINGERPRINT_VERSION),
            hashes=self.hashes,
            texts=np.frombuffer(text.encode(), np.uint8),
            allow_pickle=False,
        )

    @classmethod
    def load(cls, path: Path, distance: int) -> "EvaluationImages":
        """Read what `save` wrote.

        Raises:
            DataError: not there, broken, or of another version.
        """
        hashes, texts = load_arrays(path, "hashes", "texts")
        try:
            content = json.loads(texts.tobytes())
            names, stamp = tuple(map(str, content["names"])), str(content["stamp"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} holds no hashes of evaluation photos: {error}") from error
        if hashes.dtype != np.uint64 or hashes.shape != (len(names),):
            raise DataError(f"{path} holds no hashes of evaluation photos")
        return cls(hashes, names, stamp, distance)
