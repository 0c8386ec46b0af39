"""The photos of evaluation sets, by perceptual hash: what is like one of them must not be trained on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_prep.captions.duplicates import FINGERPRINT_VERSION, fingerprint, load_arrays
from simzss import config as conf
from simzss.atomic import write_whole
from simzss.data.benchmark import Benchmark, BenchmarkConfig
from simzss.data.shards import decode_image
from simzss.errors import InputError


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
        """Look for the sets of `benchmark=all` below each folder.

        Raises:
            InputError: no such folder, it holds none of the sets, or a part of one: what is missing would go unseen.
        """
        sets: dict[Path, list[str]] = {}
        missing: dict[str, str] = {}
        found: set[str] = set()
        for root in roots:
            if not root.is_dir():
                raise InputError(f"filters.evaluation_root={root} is no folder")
            here = 0
            for name in conf.load_choice("benchmark", "all").sets:
                choice = conf.to_plain(conf.load_choice("benchmark", name)) | {"root": str(root), "limit": None}
                config = BenchmarkConfig(**choice)
                if Benchmark.find_root(config) is None:
                    missing.setdefault(name, f"{root} has no {config.images} and {config.masks}")
                    continue
                benchmark = Benchmark(config)
                here += 1
                found.add(name)
                for photo in benchmark.names:
                    sets.setdefault(benchmark.image_path(photo), []).append(name)
            if not here:
                listed = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
                raise InputError(f"filters.evaluation_root={root} holds none of the evaluation sets ({listed})")
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
        """Name of the photo whose hash is nearest to this one, the first of several; None beyond the distance."""
        if not len(self):
            return None
        bits = np.bitwise_count(self.hashes ^ np.uint64(number))
        best = int(bits.argmin())
        return self.names[best] if bits[best] <= self.distance else None

    @classmethod
    def compute(
        cls, photos: EvaluationPhotos, distance: int, progress: Callable[[int, int], None] | None = None
    ) -> "EvaluationImages":
        """Hash every photo; `progress(done, total)` is called after each.

        Raises:
            InputError: a photo cannot be read.
        """
        hashes = np.zeros(len(photos.names), np.uint64)
        for place, path in enumerate(photos.names):
            try:
                data = path.read_bytes()
                hashes[place] = fingerprint(data, decode_image(data))[1]
            except (OSError, ValueError) as error:
                raise InputError(f"evaluation photo {path} cannot be read: {error}") from error
            if progress is not None:
                progress(place + 1, len(photos.names))
        return cls(hashes, tuple(photos.names.values()), photos.stamp, distance)

    @classmethod
    def kept(
        cls, path: Path, photos: EvaluationPhotos, distance: int, progress: Callable[[int, int], None] | None = None
    ) -> "EvaluationImages":
        """Those that an earlier run kept in `path`; where it has none, or of other photos, hashed now and kept there.

        Raises:
            InputError: a photo cannot be read.
            OSError: `path` cannot be written.
        """
        try:
            images = cls.load(path, distance)
        except InputError:
            images = None
        if images is None or images.stamp != photos.stamp:
            images = cls.compute(photos, distance, progress)
            write_whole(path, images.save)
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
            InputError: not there, broken, or of another version.
        """
        hashes, texts = load_arrays(path, "hashes", "texts")
        try:
            content = json.loads(texts.tobytes())
            names, stamp = tuple(map(str, content["names"])), str(content["stamp"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} holds no hashes of evaluation photos: {error}") from error
        if hashes.dtype != np.uint64 or hashes.shape != (len(names),):
            raise InputError(f"{path} holds no hashes of evaluation photos")
        return cls(hashes, names, stamp, distance)
