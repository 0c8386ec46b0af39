import random

import pytest

from data_prep.captions.records import Dropped
from data_prep.captions.sources import grouping as module
from data_prep.captions.sources.grouping import Grouping, write_grouping


@pytest.mark.parametrize("seed", range(4))
def test_join_is_what_dictionaries_give(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 7)
    rng = random.Random(seed)
    keys = [*(str(number) for number in range(40)), "'1'", "007", "-3", "9" * 30, "é.png", "\ud83d", ""]
    names = [(rng.choice(keys), f"{i}.png", rng.choice([None, i, f"id {i}"])) for i in range(60)]
    texts = [
        (rng.choice([*keys, "unlisted", "41"]), rng.choice(["", "a dog \udce9", "ça\x00", str(i)])) for i in range(300)
    ]
    noted = [Dropped("image", f"line {i} \ud83d", "bad", "why") for i in range(20)]
    calls = [("add_name", row) for row in names] + [("add_text", row) for row in texts]
    calls += [("add_dropped", (record,)) for record in noted]
    # Any mix of the three, each in its own order.
    order = sorted(range(len(calls)), key=lambda _: rng.random())
    queues = {kind: iter([row for found, row in calls if found == kind]) for kind, _ in calls}
    with write_grouping(tmp_path / "join") as writer:
        for kind in (calls[index][0] for index in order):
            getattr(writer, kind)(*next(queues[kind]))

    captions: dict[str, list[str]] = {}
    for key, text in texts:
        captions.setdefault(key, []).append(text)
    first: dict[str, tuple] = {}
    repeated = []
    for key, name, image_id in names:
        if key in first:
            repeated.append(name)
        first.setdefault(key, (name, image_id, captions.get(key, [])))
    grouping = Grouping(tmp_path / "join")
    for _ in range(2):
        assert [(g.name, g.image_id, g.captions) for g in grouping.groups()] == list(first.values())
        assert len(grouping) == len(first)
        assert list(grouping.repeated()) == repeated
        assert list(grouping.unlisted()) == [(key, text) for key, text in texts if key not in first]
        assert list(grouping.dropped()) == noted
    assert repeated and list(grouping.unlisted())


def test_two_readers_at_once(tmp_path):
    with write_grouping(tmp_path / "join") as writer:
        for number in range(5):
            writer.add_name(str(number), f"{number}.png")
    grouping = Grouping(tmp_path / "join")
    pairs = list(zip(grouping.groups(), grouping.groups(), strict=True))
    assert len(pairs) == 5 and all(one == other for one, other in pairs)


def test_file_that_an_earlier_run_left(tmp_path):
    (tmp_path / "join").write_bytes(b"half a database")
    for name in ("one", "two"):
        with write_grouping(tmp_path / "join") as writer:
            writer.add_name(name, name)
        assert [group.name for group in Grouping(tmp_path / "join").groups()] == [name]
