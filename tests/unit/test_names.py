"""The engineered class names and the background words in conf/names."""

import re
from pathlib import Path

import pytest

from simzss.concepts.bank import read_entries

NAMES = Path(__file__).resolve().parents[2] / "conf" / "names"
ENGINEERED = NAMES / "engineered"
BENCHMARKS = ("voc20", "context59", "coco_things", "coco_stuff", "cityscapes", "ade20k")
MOST_NAMES = 7
LISTS = [*(ENGINEERED / f"{benchmark}.txt" for benchmark in BENCHMARKS), NAMES / "background.txt"]


def groups(path: Path) -> list[tuple[str, ...]]:
    return [entry.words for entry in read_entries(path)]


def plain(benchmark: str) -> list[str]:
    return [name for (name,) in groups(NAMES / f"{benchmark}.txt")]


def engineered(benchmark: str) -> list[tuple[str, ...]]:
    return groups(ENGINEERED / f"{benchmark}.txt")


def test_every_engineered_list_is_covered_here():
    assert {path.stem for path in ENGINEERED.iterdir()} == set(BENCHMARKS)


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_only_ascii_lower_case_words(path):
    text = path.read_text(encoding="ascii")
    assert text.startswith("# ")
    assert text.endswith("\n")
    for line in text.splitlines():
        assert line.startswith("# ") or re.fullmatch(r"[a-z]+( [a-z]+)*(, [a-z]+( [a-z]+)*)*", line), line


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_one_line_a_class(benchmark):
    names, lines = plain(benchmark), engineered(benchmark)
    assert len(lines) == len(names)
    assert lines != [(name,) for name in names]
    assert max(map(len, lines)) <= MOST_NAMES


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_no_line_takes_the_plain_name_of_another_class(benchmark):
    index = {name: i for i, name in enumerate(plain(benchmark))}
    lines = enumerate(engineered(benchmark))
    assert [(i, word) for i, line in lines for word in line if index.get(word, i) != i] == []


@pytest.mark.parametrize(
    ("benchmark", "at"),
    [
        ("voc20", {0: "airplane", 13: "motorcycle", 14: "person", 17: "sofa", 19: "television"}),
        ("context59", {3: "bedding", 35: "computer mouse", 49: "table", 51: "train", 58: "wood"}),
        ("coco_things", {27: "necktie", 32: "ball", 49: "orange fruit", 64: "computer mouse", 79: "toothbrush"}),
        ("coco_stuff", {79: "toothbrush", 80: "banner", 128: "sidewalk", 151: "hay", 159: "brick wall", 170: "wood"}),
        ("cityscapes", {3: "concrete wall", 8: "tree", 9: "grass", 12: "cyclist", 18: "bicycle"}),
        (
            "ade20k",
            {13: "ground", 53: "stairs", 77: "bar counter", 116: "motorcycle", 143: "computer monitor", 149: "flag"},
        ),
    ],
)
def test_order(benchmark, at):
    lines = engineered(benchmark)
    assert {i: lines[i][0] for i in at} == at


def test_background_words_are_no_objects():
    lines = groups(NAMES / "background.txt")
    assert {len(line) for line in lines} == {1}
    assert 25 <= len(lines) <= 35
    objects = {name for benchmark in ("voc20", "coco_things") for name in plain(benchmark)}
    objects |= {word for benchmark in ("voc20", "coco_things") for line in engineered(benchmark) for word in line}
    assert sorted(objects & {line[0] for line in lines}) == []
