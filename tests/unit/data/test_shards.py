import io
import json
import pickle
import tarfile
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from simzss.concepts.concept import Caption, Concept
from simzss.data.images import decode_image
from simzss.data.index import read_indexes, unfinished
from simzss.data.shards import (
    Sample,
    Skipped,
    count_samples,
    expand_shards,
    read_members,
    read_shards,
    shard_order,
    write_shard,
)
from simzss.errors import InputError
from tests.support.files import PIPELINE, annotation, break_off, caption, image_bytes, make_shards, sample, write_tar

GOOD = [("good.png", image_bytes()), ("good.json", annotation())]


def read(*paths, **options) -> list[Sample | Skipped]:
    return list(read_shards([str(path) for path in paths], **options))


def reasons(records) -> dict[str, str]:
    return {record.key: record.reason for record in records if isinstance(record, Skipped)}


def keys(records) -> list[str]:
    return [record.key for record in records if isinstance(record, Sample)]


def test_round_trip(tmp_path):
    samples = [
        Sample(
            "000000000",
            image_bytes(0),
            "png",
            (
                Caption("İstanbul 🐶 dog", (Concept("dog", "dog", 11, 14),)),
                Caption("two, \"quoted\"\n'lines'", ()),
            ),
            "a b/ä.png",
            17,
        ),
        Sample("000000001", image_bytes(1, form="jpeg"), "jpg", (caption("a red bus", "red", "bus"),), "x.JPG", "id"),
        Sample("000000002", b"any bytes at all", "webp", (caption("a dog"),), "", None),
    ]
    write_shard(tmp_path / "s.tar", samples, PIPELINE)
    assert read(tmp_path / "s.tar") == samples


def test_layout_is_what_the_module_says(tmp_path):
    write_shard(tmp_path / "s.tar", [sample(3)], PIPELINE)
    with tarfile.open(tmp_path / "s.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    assert set(members) == {"000000003.png", "000000003.json"}
    assert members["000000003.png"] == image_bytes(3)
    assert json.loads(members["000000003.json"]) == {
        "format_version": 1,
        "pipeline": PIPELINE,
        "file_name": "3.png",
        "image_id": 3,
        "captions": [
            {"text": "dog number 3", "concepts": [{"text": "dog", "lemma": "dog", "start": 0, "end": 3}]},
        ],
    }


def test_name_with_half_a_surrogate_pair_is_kept(tmp_path):
    """As a file name that is no UTF-8 comes from the system."""
    written = Sample("0", image_bytes(), "png", (caption("a dog"),), "caf\udce9.png", "\ud83d")
    write_shard(tmp_path / "s.tar", [written], PIPELINE)
    assert read(tmp_path / "s.tar") == [written]


def test_equal_samples_give_equal_bytes(tmp_path, monkeypatch):
    for name, now in (("a", 1_000_000_000.0), ("b", 1_500_000_000.0)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        write_shard(tmp_path / name, [sample(0), sample(1)], PIPELINE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_shard(tmp_path / "c", [sample(1), sample(0)], PIPELINE)
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("bad.json", annotation())], "no image"),
        ([("bad.txt", b"a dog"), ("bad.seg.png", image_bytes()), ("bad.json", annotation())], "no image"),
        ([("bad.png", image_bytes())], "bad annotation"),
        ([("bad.png", image_bytes()), ("bad.json", b'{"captions":')], "bad annotation"),
        ([("bad.png", image_bytes()), ("bad.json", b"\xff\xfe\x00")], "bad annotation"),
        ([("bad.png", image_bytes()), ("bad.json", b"[]")], "bad annotation"),
        ([("bad.png", image_bytes()), ("bad.json", b"{}")], "format_version"),
        ([("bad.png", image_bytes()), ("bad.json", annotation(format_version=2))], "format 2"),
        ([("bad.png", image_bytes()), ("bad.json", annotation(captions=None))], "bad annotation"),
        ([("bad.png", image_bytes()), ("bad.json", annotation(captions=["a dog"]))], "bad annotation"),
        ([("bad.png", image_bytes()), ("bad.json", annotation(captions=[{"text": "a dog"}]))], "concepts"),
        (
            [("bad.png", image_bytes()), ("bad.json", annotation(captions=[{"text": "a", "concepts": [{}]}]))],
            "bad annotation",
        ),
        ([("bad.png", image_bytes()), ("bad.json", annotation(captions=[]))], "no caption"),
        (
            [("bad.png", image_bytes()), ("bad.json", annotation(captions=[{"text": "\ud83d", "concepts": []}]))],
            "surrogates",
        ),
    ],
)
def test_bad_sample_is_passed_on_with_its_reason(tmp_path, members, reason):
    records = read(write_tar(tmp_path / "s.tar", [*members, *GOOD]))
    assert keys(records) == ["good"]
    assert list(reasons(records)) == ["bad"]
    assert reason in reasons(records)["bad"]
    assert {record.shard for record in records} == {str(tmp_path / "s.tar")}


@pytest.mark.parametrize("cut", [0, 100, 600, 1700, 3000])
def test_broken_tar_is_reported_and_the_others_are_read(tmp_path, cut):
    first, second, third = make_shards(tmp_path, [2, 2, 2])
    whole = Path(second).read_bytes()
    # A second shard that breaks off: in its first header, its first file, its second file and in its second sample.
    Path(second).write_bytes(whole[:cut])
    records = read(first, second, third)
    assert keys(records)[:2] == ["000000000", "000000001"]
    assert keys(records)[-2:] == ["000000004", "000000005"]
    assert any("unreadable tar" in reason and name == Path(second).name for name, reason in reasons(records).items())


def test_file_that_is_no_tar_and_missing_file(tmp_path):
    (shard,) = make_shards(tmp_path, [1])
    (tmp_path / "text.tar").write_text("no tar " * 500, encoding="utf-8")
    records = read(tmp_path / "text.tar", tmp_path / "gone.tar", shard, shard)
    assert keys(records) == ["000000000"] * 2
    assert set(reasons(records)) == {"text.tar", "gone.tar"} and len(records) == 4
    assert count_samples([str(tmp_path / "text.tar"), str(tmp_path / "gone.tar"), str(tmp_path), shard]) == 1


def test_half_sample_of_a_broken_tar_takes_nothing_from_the_next_tar(tmp_path):
    for name, color in (("a", "red"), ("b", "blue")):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), color).save(buffer, "png")
        write_shard(tmp_path / f"{name}.tar", [sample(0, [caption(color)], buffer.getvalue())], PIPELINE)
    broken = tmp_path / "a.tar"
    broken.write_bytes(broken.read_bytes()[:1600])  # its JSON file is whole, its image is not
    seen = [record for record in read(broken, tmp_path / "b.tar") if isinstance(record, Sample)]
    colors = [(record.captions[0].text, decode_image(record.image).getpixel((0, 0))) for record in seen]
    assert colors == [("blue", (0, 0, 255))]


def test_file_that_stands_twice_is_reported_and_the_rest_is_read(tmp_path):
    members = [("a.png", image_bytes(0)), ("a.PNG", image_bytes(1)), ("a.json", annotation()), *GOOD]
    records = read(write_tar(tmp_path / "s.tar", members))
    assert keys(records) == ["a", "good"]
    assert records[0].image == image_bytes(0)
    assert list(reasons(records)) == ["s.tar"] and "a.PNG" in reasons(records)["s.tar"]


def test_broken_tars_are_reported_as_they_are_met(tmp_path):
    (tmp_path / "broken.tar").write_bytes(b"no tar " * 500)

    def urls():
        for _ in range(50):
            yield str(tmp_path / "broken.tar")
        pytest.fail("50 broken tars were read and none was reported")

    assert isinstance(next(read_shards(urls())), Skipped)


class Payload:
    """Unpickles to a call of `open(path, "w")`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_ever_unpickled(tmp_path):
    trace = tmp_path / "trace"
    payload = pickle.dumps(Payload(trace))
    pickle.loads(payload).close()
    assert trace.exists(), "the payload works"
    trace.unlink()
    suffixes = ("pyd", "pickle", "pkl", "pth", "pt", "npy", "npz", "cls", "x.pyd")
    members = [(f"s.{suffix}", payload) for suffix in suffixes]
    poisoned = [("t.png", payload), ("t.json", annotation()), ("u.png", image_bytes()), ("u.json", payload)]
    shard = write_tar(tmp_path / "s.tar", [("s.png", image_bytes()), ("s.json", annotation()), *members, *poisoned])
    records = read(shard, shuffle=2, seed="s")
    assert sorted(keys(records)) == ["s", "t"]
    assert list(reasons(records)) == ["u"]
    for record in records:
        if isinstance(record, Sample) and record.key == "t":
            with pytest.raises(ValueError, match="unreadable image"):
                decode_image(record.image)
    (raw, *_) = read_members([str(shard)], pytest.fail)
    assert raw["pyd"] == payload
    assert not trace.exists()


def test_file_name_is_no_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pipe:touch trace;#.tar", "run:1.tar", "run:2/s.tar"):
        Path(name).parent.mkdir(exist_ok=True)
        write_shard(Path(name), [sample(0)], PIPELINE)
        assert keys(read(*expand_shards(name))) == ["000000000"]
    assert not (tmp_path / "trace").exists()


def test_shuffle_buffer(tmp_path):
    shards = make_shards(tmp_path, [5, 5])
    ordered = keys(read(*shards))
    assert ordered == [f"{i:09d}" for i in range(10)]
    orders = {seed: keys(read(*shards, shuffle=10, seed=seed)) for seed in ("a", "b", "c")}
    assert all(sorted(order) == ordered for order in orders.values())
    assert len({tuple(order) for order in orders.values()} | {tuple(ordered)}) == 4
    assert keys(read(*shards, shuffle=10, seed="a")) == orders["a"]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("b/2.tar", "b/1.tar", "a/1.tar", "a/x.txt", "c/d/1.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("b/1.tar", ["b/1.tar"]),
        ("b/*.tar", ["b/1.tar", "b/2.tar"]),
        ("*/*.tar", ["a/1.tar", "b/1.tar", "b/2.tar"]),
        ("**/1.tar", ["a/1.tar", "b/1.tar", "c/d/1.tar"]),
        ("{b,a}/*.tar", ["b/1.tar", "b/2.tar", "a/1.tar"]),
        ("b/{1..2}.tar", ["b/1.tar", "b/2.tar"]),
        (["c/d/*.tar", "{a,b}/1.tar"], ["c/d/1.tar", "a/1.tar", "b/1.tar"]),
        ("[ab]/?.tar", ["a/1.tar", "b/1.tar", "b/2.tar"]),
    ],
)
def test_expand_patterns(tree, pattern, expected):
    assert expand_shards(pattern) == expected
    absolute = [pattern] if isinstance(pattern, str) else pattern
    assert expand_shards([f"{tree}/{part}" for part in absolute]) == [f"{tree}/{path}" for path in expected]


@pytest.mark.parametrize("pattern", ["d/*.tar", "{a,d}/1.tar", "b/{1..3}.tar", ["a/1.tar", "gone.tar"], ""])
def test_pattern_without_a_match(tree, pattern):
    with pytest.raises(InputError, match="no file"):
        expand_shards(pattern)


@pytest.mark.parametrize("pattern", ["{a,b/*.tar", "a}/*.tar"])
def test_unbalanced_braces(tree, pattern):
    with pytest.raises(InputError) as caught:
        expand_shards(pattern)
    assert pattern in str(caught.value)


@pytest.mark.parametrize("folder", ["run[1]", "[2024] run"])
def test_path_that_exists_is_no_pattern(tree, folder):
    (tree / folder).mkdir()
    (tree / folder / "s.tar").touch()
    assert expand_shards(f"{folder}/s.tar") == [f"{folder}/s.tar"]


URLS = [f"s{i}" for i in range(7)]


def test_every_pass_is_another_permutation():
    passes = list(islice(shard_order(URLS, 5, 1), 4))
    assert all(sorted(order) == URLS for order in passes)
    assert len({tuple(order) for order in passes}) == 4


def test_shard_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        return list(islice(shard_order(URLS, seed, epoch), 2))

    assert order(3, 0) == order(3, 0)
    assert len({str(order(seed, epoch)) for seed in (3, 4) for epoch in (0, 1)}) == 4


def index(folder: Path, content) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "index.json").write_text(text, encoding="utf-8")


def test_count_without_index(tmp_path):
    shards = make_shards(tmp_path / "a", [3, 1]) + make_shards(tmp_path / "b", [2])
    assert count_samples(shards) == 6


def test_count_up_to_where_a_tar_breaks_off(tmp_path):
    (shard,) = make_shards(tmp_path, [20])
    break_off(shard, "000000015")
    readable = len(keys(read(shard)))
    assert readable >= 14 and readable <= count_samples([shard]) <= readable + 1


def test_count_trusts_the_index_and_reads_what_it_does_not_list(tmp_path):
    shards = make_shards(tmp_path / "a", [3, 1]) + make_shards(tmp_path / "b", [2])
    index(tmp_path / "a", {"shards": [{"name": "shard-000000.tar", "samples": 1000}]})
    assert count_samples(shards) == 1000 + 1 + 2
    assert count_samples(shards[1:]) == 3


@pytest.mark.parametrize("content", ["{broken", "[]", '{"shards": [{"file": "x.tar"}]}', '{"shards": 3}'])
def test_foreign_index_is_ignored_or_refused_in_one_line(tmp_path, content):
    shards = make_shards(tmp_path, [3])
    index(tmp_path, content)
    try:
        assert count_samples(shards) == 3
    except InputError as error:
        assert "index.json" in str(error)


def test_folders_with_failed_tasks_are_named_in_one_line(tmp_path):
    contents = {
        "complete": {"complete": True, "failed": {}, "shards": []},
        "old": {"shards": [{"name": "shard-000000.tar", "samples": 5}]},
        "one": {"complete": False, "failed": {"in.tar": "bad"}, "shards": []},
        "two": {"complete": False, "failed": {"a": "bad", "b": "bad"}, "shards": []},
        "foreign": {"complete": False, "files": []},
        "none": None,
    }
    shards = [shard for name in contents for shard in make_shards(tmp_path / name, [2, 1])]
    for name, content in contents.items():
        if content is not None:
            index(tmp_path / name, content)
    indexes = read_indexes(shards)
    assert [found.folder.name for found in indexes] == ["complete", "old", "one", "two"]  # each once
    line = unfinished(indexes)
    assert f"{tmp_path}/one (failed tasks: 1), {tmp_path}/two (failed tasks: 2);" in line and "\n" not in line
    assert not any(f"{tmp_path}/{name}" in line for name in ("complete", "old", "foreign", "none"))
    assert unfinished(indexes[:2]) is None and unfinished([]) is None
    assert count_samples(shards) == 5 + 1 + 5 * 3
