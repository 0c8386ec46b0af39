"""Which image repeats which: bytes compared by digest, pictures by perceptual hash, within the corpus and against the
photos of evaluation sets. The only imagehash import."""  # fmt: skip

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import imagehash
import numpy as np
from PIL import Image

from data_prep.captions.output import write_whole
from simzss import config as conf
from simzss.data.benchmark import Benchmark, BenchmarkConfig
from simzss.data.shards import decode_image
from simzss.errors import InputError

FINGERPRINT_VERSION = 1
"""Counted up when images are decoded or hashed in another way, so that old fingerprints are not compared with new."""

_DIGEST_BYTES = 16
_BITS = 64
_BLOCK = 512  # hashes that are compared all with all
_PAIRS = 1 << 20  # pairs compared at once: bounds the memory
_TILE = 1 << 17  # the same, where all are compared with all: what fits a core's cache
_GATHERED = 8  # times as long as a pair of a tile takes one that is looked up


def fingerprint(data: bytes, image: Image.Image) -> tuple[bytes, int]:
    """Digest (16 bytes) of an image file and 64-bit perceptual hash of its picture, decoded to RGB.

    The hash says which low frequencies of the grey picture are strong. It survives another size and compression, and
    small corrections; it does not see colour alone, and a crop, a turn or a mirror image looks like another picture.
    """
    bits = imagehash.phash(image).hash
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest(), int.from_bytes(np.packbits(bits).tobytes(), "big")


@dataclass(frozen=True)
class Fingerprints:
    """Of n images in order: `digests` (n, 16) uint8 and `hashes` (n,) uint64; 24 bytes an image."""

    digests: np.ndarray
    hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, found: Sequence[tuple[bytes, int]]) -> "Fingerprints":
        """What `fingerprint` gave for each image."""
        joined = b"".join(digest for digest, _ in found)
        digests = np.frombuffer(joined, np.uint8).reshape(len(found), _DIGEST_BYTES)
        return cls(digests, np.array([number for _, number in found], np.uint64))

    @classmethod
    def join(cls, parts: Sequence["Fingerprints"]) -> "Fingerprints":
        """Those of several tasks, one after the other."""
        parts = [cls.of([]), *parts]
        return cls(np.concatenate([part.digests for part in parts]), np.concatenate([part.hashes for part in parts]))


def load_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of an `.npz` file whose `version` is `FINGERPRINT_VERSION`.

    Raises:
        InputError: not there, broken, without one of the arrays, or of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            version = int(file["version"])
            arrays = [file[name] for name in names]
    except Exception as error:
        # numpy and zipfile raise half a dozen types on broken files.
        raise InputError(f"{path} cannot be read: {error}") from error
    if version != FINGERPRINT_VERSION:
        raise InputError(f"{path} has fingerprints of version {version}, this program makes {FINGERPRINT_VERSION}")
    return arrays


def exact_copies(digests: np.ndarray) -> np.ndarray:
    """For each of (n, 16) uint8 digests the place of the first equal one, its own when it is the first; (n,) int64."""
    halves = np.ascontiguousarray(digests).view(np.uint64).reshape(len(digests), 2)
    order = np.lexsort(halves.T)  # stable: within equal digests in their order
    new = np.ones(len(order), bool)
    new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    return first


def near_copies(hashes: np.ndarray, distance: int, candidates: np.ndarray | None = None) -> np.ndarray:
    """For each image the earliest one that stays and looks like it, its own place when it stays itself.

    In order: an image stays unless its hash differs by at most `distance` bits from that of an earlier one that stays.
    So two images that stay always differ by more, and an image is never left out for one that is left out itself.

    Exact, by bands: of `distance + 1` parts of the 64 bits at least one is equal in two hashes that differ by
    `distance` bits, so only hashes that share a part are compared. Memory grows with the images, never with the pairs.

    Args:
        hashes: (n,) uint64.
        distance: bits, 0 to 63.
        candidates: (n,) bool, the images that take part, default all; the others keep their own place.

    Returns:
        (n,) int64.
    """
    first = np.arange(len(hashes))
    places = first if candidates is None else np.flatnonzero(candidates)
    # Equal hashes share their fate: a placeholder that comes a million times is looked at once.
    values, starts, inverse = np.unique(hashes[places], return_index=True, return_inverse=True)
    order = np.argsort(starts)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    target = np.arange(len(values))
    if distance:
        _sift(values[order], np.arange(len(values)), distance, target)
    first[places] = places[starts[order][target[rank[inverse]]]]
    return first


def _sift(hashes: np.ndarray, places: np.ndarray, distance: int, target: np.ndarray) -> np.ndarray:
    """Note in `target` the earliest of `places` that stays within the distance of each; returns those that stay.

    The second half meets only what stays of the first half, which is never crowded: its hashes lie apart.
    """
    if len(places) <= _BLOCK:
        return _sift_block(hashes[places], places, distance, target)
    half = len(places) // 2
    early = _sift(hashes, places[:half], distance, target)
    late = places[half:]
    found = _earliest(hashes[early], hashes[late], distance)
    near = found < len(early)
    target[late[near]] = early[found[near]]
    return np.concatenate([early, _sift(hashes, late[~near], distance, target)])


def _sift_block(hashes: np.ndarray, places: np.ndarray, distance: int, target: np.ndarray) -> np.ndarray:
    near = np.triu(np.bitwise_count(hashes[:, None] ^ hashes) <= distance, 1)
    stays = np.ones(len(hashes), bool)
    for row in np.flatnonzero(near.any(axis=1)):
        if stays[row]:
            new = near[row] & stays
            target[places[new]] = places[row]
            stays &= ~new
    return places[stays]


def _earliest(known: np.ndarray, hashes: np.ndarray, distance: int) -> np.ndarray:
    """Place in `known` (k,) of the first within the distance of each of `hashes` (n,), k where there is none; (n,)."""
    edges = np.linspace(0, _BITS, distance + 2).astype(int)
    bands = [_Band(known, hashes, low, high) for low, high in pairwise(edges)]
    if sum(band.size for band in bands) * _GATHERED > len(known) * len(hashes):
        return _earliest_of_all(known, hashes, distance)
    found = np.full(len(hashes), len(known))
    for band in bands:
        for early, late in band.pairs():
            near = np.bitwise_count(known[early] ^ hashes[late]) <= distance
            np.minimum.at(found, late[near], early[near])
    return found


class _Band:
    """Pairs of a known and another hash that are equal from bit `low` up to `high`; `size` is their number."""

    def __init__(self, known: np.ndarray, hashes: np.ndarray, low: int, high: int) -> None:
        mask = np.uint64((1 << int(high - low)) - 1)
        kind = np.min_scalar_type(mask)  # two bytes are sorted by digits, which is quicker
        known_keys, keys = (((values >> np.uint64(low)) & mask).astype(kind) for values in (known, hashes))
        self._order = np.argsort(known_keys, kind="stable")
        known_keys = known_keys[self._order]
        self._starts = np.searchsorted(known_keys, keys, "left")
        self._counts = np.searchsorted(known_keys, keys, "right") - self._starts
        self.size = int(self._counts.sum())

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places in both, at most `_PAIRS` at a time."""
        ends = np.cumsum(self._counts)
        begins = ends - self._counts
        for begin in range(0, self.size, _PAIRS):
            end = min(begin + _PAIRS, self.size)
            rows = slice(np.searchsorted(ends, begin, "right"), np.searchsorted(begins, end, "left"))
            repeats = np.minimum(ends[rows], end) - np.maximum(begins[rows], begin)
            late = np.repeat(np.arange(rows.start, rows.stop), repeats)
            yield self._order[np.arange(begin, end) + (self._starts - begins)[late]], late


def _earliest_of_all(known: np.ndarray, hashes: np.ndarray, distance: int) -> np.ndarray:
    """As `_earliest`, by comparing all with all."""
    found = np.full(len(hashes), len(known))
    columns = min(len(known), _TILE // 64)
    rows = _TILE // max(columns, 1)
    for top in range(0, len(hashes), rows):
        some = hashes[top : top + rows, None]
        for left in range(0, len(known), columns):
            near = np.bitwise_count(some ^ known[left : left + columns]) <= distance
            hit = near.any(axis=1)
            if hit.any():
                best = found[top : top + rows]
                best[hit] = np.minimum(best[hit], left + near[hit].argmax(axis=1))
    return found


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
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).hexdigest()


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
