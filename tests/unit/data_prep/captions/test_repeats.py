import numpy as np
import pytest

from data_prep.captions.duplicates import Fingerprints
from data_prep.captions.output import OutputFolder
from data_prep.captions.records import key_of
from data_prep.captions.repeats import Repeats, TaskFingerprints, find_repeats
from data_prep.captions.settings import FilterSettings
from tests.support.files import caption


def random_tasks(rng, merging):
    """Tasks whose images repeat few files and few pictures; each image with its own places and captions."""
    tasks = []
    for number in range(6):
        count = int(rng.integers(0, 12))
        positions = np.sort(rng.choice(40, count, replace=False)).astype(np.int64)
        files = rng.integers(0, 15, count)
        # One bit apart from its neighbours for each file: near copies of one another in a chain.
        prints = [(bytes([file]) * 16, (1 << int(file)) - 1) for file in files]
        captions = [[caption(f"dog {number}/{position}", "dog"), caption("same")] for position in positions]
        tasks.append((positions, prints, captions if merging else None))
    return tasks


def by_hand(tasks, exact, distance):
    """Every image in order against every earlier one that stays: (dropped, captions) by task."""
    kept = []  # (task, position, digest, hash)
    first = {}
    dropped = [{} for _ in tasks]
    gained = [{} for _ in tasks]
    for number, (positions, prints, captions) in enumerate(tasks):
        for place, position in enumerate(positions.tolist()):
            digest, value = prints[place]
            if exact != "keep" and digest in first:
                owner, first_place = first[digest]
                dropped[number][position] = f"first copy: {key_of(owner, first_place)}"
                if exact == "merge":
                    gained[owner].setdefault(first_place, []).extend(captions[place])
                continue
            first.setdefault(digest, (number, position))
            near = [(o, p) for o, p, h in kept if distance is not None and (h ^ value).bit_count() <= distance]
            if near:
                dropped[number][position] = f"first copy: {key_of(*near[0])}"
            else:
                kept.append((number, position, value))
    gained = [{p: t for p, t in found.items() if p not in dropped[n]} for n, found in enumerate(gained)]
    return dropped, gained


@pytest.mark.parametrize("exact", ["keep", "drop", "merge"])
@pytest.mark.parametrize("distance", [None, 0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_decisions_against_a_loop(tmp_path, exact, distance, seed):
    tasks = random_tasks(np.random.default_rng(seed), exact == "merge")
    output = OutputFolder(tmp_path)
    output.tasks.mkdir()
    for number, (positions, prints, captions) in enumerate(tasks):
        if len(positions):  # a task without fingerprints is one that failed
            with output.fingerprints(number).open("wb") as stream:
                TaskFingerprints("x", positions, Fingerprints.of(prints), captions).save(stream)
    repeats = find_repeats(output, ["x"] * len(tasks), FilterSettings(exact_duplicates=exact, near_duplicates=distance))
    dropped, gained = by_hand(tasks, exact, distance)
    found = [repeats(number) for number in range(len(tasks))]
    assert [{p: detail for p, (_, detail) in item.dropped.items()} for item in found] == dropped
    assert [item.captions for item in found] == gained
    if exact == "drop" and distance == 2:
        reasons = {reason for item in found for reason, _ in item.dropped.values()}
        assert reasons <= {"exact copy of an earlier image", "near copy of an earlier image"} and reasons


def test_digest_tells_decisions_apart():
    some = [
        Repeats(),
        Repeats({1: ("a", "b")}),
        Repeats({1: ("a", "c")}),
        Repeats({2: ("a", "b")}),
        Repeats({}, {1: [caption("a")]}),
        Repeats({}, {1: [caption("b")]}),
        Repeats({}, {1: [caption("a", "a")]}),
    ]
    assert len({item.digest() for item in some}) == len(some)
    assert Repeats({1: ("a", "b"), 0: ("c", "d")}).digest() == Repeats({0: ("c", "d"), 1: ("a", "b")}).digest()


def test_fingerprints_of_other_input_do_not_count(tmp_path):
    output = OutputFolder(tmp_path)
    output.tasks.mkdir()
    for number in range(2):
        with output.fingerprints(number).open("wb") as stream:
            prints = Fingerprints.of([(bytes(16), 0)])
            TaskFingerprints("now", np.zeros(1, np.int64), prints).save(stream)
    rules = FilterSettings(exact_duplicates="drop")
    assert find_repeats(output, ["now", "now"], rules)(1).dropped.keys() == {0}
    assert find_repeats(output, ["later", "now"], rules)(1) == Repeats()
    output.fingerprints(0).write_bytes(output.fingerprints(0).read_bytes()[:-30])
    assert find_repeats(output, ["now", "now"], rules)(1) == Repeats()


def test_fingerprints_come_back(tmp_path):
    captions = [[caption("a dog", "dog"), caption("café")], []]
    positions, prints = np.array([3, 9]), Fingerprints.of([(b"a" * 16, 1), (b"b" * 16, (1 << 64) - 1)])
    with (tmp_path / "x.npz").open("wb") as stream:
        TaskFingerprints("stamp", positions, prints, captions).save(stream)
    found = TaskFingerprints.load(tmp_path / "x.npz", captions=True)
    assert found.stamp == "stamp" and found.captions == captions and found.positions.tolist() == [3, 9]
    assert found.fingerprints.hashes.tolist() == [1, (1 << 64) - 1]
    assert TaskFingerprints.load(tmp_path / "x.npz").captions is None
