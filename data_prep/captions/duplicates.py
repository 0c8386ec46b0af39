"""Find repeated images: equal bytes by digest, similar pictures by perceptual hash. The only imagehash import."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from simzss.errors import DataError
from simzss.extras import need

FINGERPRINT_VERSION = 1
"""Counted up when images are decoded or hashed in another way, so that old fingerprints are not compared with new."""

_DIGEST_BYTES = 16
_BITS = 64
_BLOCK = 512  # hashes that are compared all with all
_PAIRS = 1 << 20  # pairs compared at once: bounds the memory
_TILE = 1 << 17  # the same, where all are compared with all: what fits a core's cache
_GATHERED = 8  # times as long as a pair of a tile takes one that is looked up


def fingerprint(data: bytes, image: Image.Image) -> tuple[bytes, int]:
    """Return the digest (16 bytes) of an image file and the 64-bit perceptual hash of its picture, decoded to RGB.

    The hash says which low frequencies of the grey picture are strong. It survives another size and compression, and
    small corrections; it does not see colour alone, and a crop, a turn or a mirror image looks like another picture.
    """
    bits = need("imagehash", "prep").phash(image).hash
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
        """Make them from the result of `fingerprint` for each image."""
        joined = b"".join(digest for digest, _ in found)
        digests = np.frombuffer(joined, np.uint8).reshape(len(found), _DIGEST_BYTES)
        return cls(digests, np.array([number for _, number in found], np.uint64))

    @classmethod
    def join(cls, parts: Sequence["Fingerprints"]) -> "Fingerprints":
        """Join those of several tasks, one after the other."""
        parts = [cls.of([]), *parts]
        return cls(np.concatenate([part.digests for part in parts]), np.concatenate([part.hashes for part in parts]))


def load_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Read arrays of an `.npz` file whose `version` is `FINGERPRINT_VERSION`.

    Raises:
        DataError: not there, broken, without one of the arrays, or of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            version = int(file["version"])
            arrays = [file[name] for name in names]
    except Exception as error:
        # numpy and zipfile raise half a dozen types on broken files.
        raise DataError(f"{path} cannot be read: {error}") from error
    if version != FINGERPRINT_VERSION:
        raise DataError(f"{path} has fingerprints of version {version}, this program makes {FINGERPRINT_VERSION}")
    return arrays


def exact_copies(digests: np.ndarray) -> np.ndarray:
    """Return the index of the first equal digest for each of (n, 16) uint8 digests; (n,) int64."""
    halves = np.ascontiguousarray(digests).view(np.uint64).reshape(len(digests), 2)
    order = np.lexsort(halves.T)  # stable: within equal digests in their order
    new = np.ones(len(order), bool)
    new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    return first


def near_copies(hashes: np.ndarray, distance: int, candidates: np.ndarray | None = None) -> np.ndarray:
    """Return the index of the first kept near-duplicate of each image, its own where it is kept itself.

    In order: an image stays unless its hash differs by at most `distance` bits from that of an earlier one that stays.
    So two images that stay always differ by more, and an image is never left out for one that is left out itself.

    Exact, by bands: of `distance + 1` parts of the 64 bits at least one is equal in two hashes that differ by
    `distance` bits, so only hashes that share a part are compared. Memory grows with the images, never with the pairs.

    Args:
        hashes: (n,) uint64.
        distance: bits, 0 to 63.
        candidates: (n,) bool, the images that take part, default all; the others keep their own index.

    Returns:
        (n,) int64.
    """
    first = np.arange(len(hashes))
    indices = first if candidates is None else np.flatnonzero(candidates)
    # Equal hashes share their fate: a placeholder that comes a million times is looked at once.
    values, starts, inverse = np.unique(hashes[indices], return_index=True, return_inverse=True)
    order = np.argsort(starts)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    target = np.arange(len(values))
    if distance:
        _sift(values[order], np.arange(len(values)), distance, target)
    first[indices] = indices[starts[order][target[rank[inverse]]]]
    return first


def _sift(hashes: np.ndarray, indices: np.ndarray, distance: int, target: np.ndarray) -> np.ndarray:
    """Note in `target` the earliest kept index within the distance of each of `indices`; return those that are kept.

    The second half meets only what stays of the first half, which is never crowded: its hashes lie apart.
    """
    if len(indices) <= _BLOCK:
        return _sift_block(hashes[indices], indices, distance, target)
    half = len(indices) // 2
    early = _sift(hashes, indices[:half], distance, target)
    late = indices[half:]
    found = _earliest(hashes[early], hashes[late], distance)
    near = found < len(early)
    target[late[near]] = early[found[near]]
    return np.concatenate([early, _sift(hashes, late[~near], distance, target)])


def _sift_block(hashes: np.ndarray, indices: np.ndarray, distance: int, target: np.ndarray) -> np.ndarray:
    near = np.triu(np.bitwise_count(hashes[:, None] ^ hashes) <= distance, 1)
    stays = np.ones(len(hashes), bool)
    for row in np.flatnonzero(near.any(axis=1)):
        if stays[row]:
            new = near[row] & stays
            target[indices[new]] = indices[row]
            stays &= ~new
    return indices[stays]


def _earliest(known: np.ndarray, hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return the index in `known` (k,) of the first within the distance of each of `hashes` (n,), k for none; (n,)."""
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
        """Yield indices into both, at most `_PAIRS` at a time."""
        ends = np.cumsum(self._counts)
        begins = ends - self._counts
        for begin in range(0, self.size, _PAIRS):
            end = min(begin + _PAIRS, self.size)
            rows = slice(np.searchsorted(ends, begin, "right"), np.searchsorted(begins, end, "left"))
            repeats = np.minimum(ends[rows], end) - np.maximum(begins[rows], begin)
            late = np.repeat(np.arange(rows.start, rows.stop), repeats)
            yield self._order[np.arange(begin, end) + (self._starts - begins)[late]], late


def _earliest_of_all(known: np.ndarray, hashes: np.ndarray, distance: int) -> np.ndarray:
    """Find the same as `_earliest` by comparing all with all."""
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
