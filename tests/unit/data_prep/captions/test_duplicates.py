import hashlib
import io

import numpy as np
import pytest
from PIL import Image

import data_prep.captions.duplicates as duplicates
from data_prep.captions.duplicates import (
    Fingerprints,
    exact_copies,
    fingerprint,
    load_arrays,
    near_copies,
)
from simzss.errors import InputError
from tests.support.files import encode, image_bytes, picture


def smooth(seed, size=(64, 48)):
    """A picture of broad strokes, as photos have them."""
    return picture(seed, (8, 6)).resize(size, Image.Resampling.BICUBIC)


def by_hand(hashes, distance, candidates):
    """Every image in order against every earlier one that stays."""
    found, kept = [], []
    values = hashes.tolist()
    for place, value in enumerate(values):
        twin = next((k for k in kept if (values[k] ^ value).bit_count() <= distance), None)
        if not candidates[place] or twin is None:
            found.append(place)
            kept += [place] * bool(candidates[place])
        else:
            found.append(twin)
    return found


def crowd(rng, count, centres, flips):
    """Hashes that differ from few centres by up to so many bits."""
    chosen = rng.integers(0, 1 << 63, centres, dtype=np.uint64)[rng.integers(0, centres, count)]
    for _ in range(flips):
        chosen ^= np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
    return chosen


def chain(count):
    """Each differs from the one before by one bit, from the one before that by two, and so on."""
    return np.array([(1 << i) - 1 for i in range(count)], np.uint64)


def one_band(rng, count):
    """All equal in the upper 48 bits: every pair shares a band."""
    return rng.integers(0, 1 << 16, count, dtype=np.uint64)


CASES = {
    "spread": lambda rng: rng.integers(0, 1 << 63, 400, dtype=np.uint64),
    "crowded": lambda rng: crowd(rng, 700, 5, 5),
    "many centres": lambda rng: crowd(rng, 800, 160, 3),
    "equal": lambda rng: np.full(600, 7, np.uint64),
    "chain": lambda rng: chain(64),
    "one band": lambda rng: one_band(rng, 700),
    "one": lambda rng: np.array([3], np.uint64),
    "none": lambda rng: np.zeros(0, np.uint64),
}


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 8, 16])
@pytest.mark.parametrize("case", CASES)
def test_near_copies_against_a_loop(case, distance):
    rng = np.random.default_rng(distance)
    hashes = CASES[case](rng)
    everyone = np.ones(len(hashes), bool)
    assert near_copies(hashes, distance).tolist() == by_hand(hashes, distance, everyone)
    some = rng.random(len(hashes)) < 0.6
    assert near_copies(hashes, distance, some).tolist() == by_hand(hashes, distance, some)


def test_near_copies_in_small_blocks(monkeypatch):
    """The limits that bound the memory change nothing."""
    hashes = crowd(np.random.default_rng(0), 400, 20, 4)
    expected = by_hand(hashes, 4, np.ones(400, bool))
    for name, value in (("_BLOCK", 3), ("_PAIRS", 5), ("_TILE", 256)):
        monkeypatch.setattr(duplicates, name, value)
        assert near_copies(hashes, 4).tolist() == expected


@pytest.mark.parametrize("kinds", [1, 5, 10_000])
def test_exact_copies_against_a_dictionary(kinds):
    rng = np.random.default_rng(kinds)
    files = rng.integers(0, kinds, 500)
    digests = np.frombuffer(b"".join(hashlib.md5(bytes([f % 256, f // 256])).digest() for f in files), np.uint8)
    first: dict[int, int] = {}
    expected = [first.setdefault(file, place) for place, file in enumerate(files.tolist())]
    assert exact_copies(digests.reshape(500, 16)).tolist() == expected
    assert exact_copies(np.zeros((0, 16), np.uint8)).tolist() == []


def test_digests_that_differ_in_half_their_bytes_differ():
    digests = np.zeros((3, 16), np.uint8)
    digests[1, 2], digests[2, 12] = 1, 1
    assert exact_copies(digests).tolist() == [0, 1, 2]


def test_fingerprint_is_of_the_file_and_of_the_picture():
    image = smooth(1)
    data, other = encode(image), encode(image, "jpeg")
    digest, value = fingerprint(data, image)
    assert digest == hashlib.blake2b(data, digest_size=16).digest()
    assert 0 <= value < 1 << 64
    again = fingerprint(other, Image.open(io.BytesIO(other)).convert("RGB"))
    assert again[0] != digest
    assert (again[1] ^ value).bit_count() <= 4
    smaller = image.resize((40, 30), Image.Resampling.BICUBIC)
    assert (fingerprint(data, smaller)[1] ^ value).bit_count() <= 4
    unrelated = [(fingerprint(b"", smooth(seed))[1] ^ value).bit_count() for seed in range(2, 22)]
    assert min(unrelated) > 8


def test_perceptual_hash_against_its_definition():
    """Zauner's pHash: the 8 x 8 lowest frequencies of a 32 x 32 cosine transform against their median."""
    image = smooth(3)
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    index = np.arange(32)
    basis = np.cos(np.pi * (2 * index[None, :] + 1) * index[:, None] / 64)
    low = (basis @ grey @ basis.T)[:8, :8]
    bits = (low > np.median(low)).ravel()
    assert fingerprint(b"", image)[1] == int("".join("1" if bit else "0" for bit in bits), 2)


def test_fingerprints_join():
    parts = [Fingerprints.of([(bytes([n]) * 16, n)]) for n in range(3)]
    joined = Fingerprints.join(parts)
    assert joined.hashes.tolist() == [0, 1, 2] and joined.digests[:, 0].tolist() == [0, 1, 2]
    assert len(Fingerprints.join([])) == 0


def test_files_of_pickles_are_refused(tmp_path):
    with (tmp_path / "x.npz").open("wb") as stream:
        np.savez(stream, version=np.int64(1), hashes=np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        load_arrays(tmp_path / "x.npz", "hashes")
    (tmp_path / "y.npz").write_bytes(image_bytes())
    with pytest.raises(InputError, match="cannot be read"):
        load_arrays(tmp_path / "y.npz", "hashes")
