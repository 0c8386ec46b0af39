"""The word lists in conf/: class names of the benchmarks and concept banks, read with a few lines of their own."""

import re
from pathlib import Path

import pytest

CONF = Path(__file__).resolve().parents[3] / "conf"
NAMES = CONF / "names"
BANKS = CONF / "concepts" / "banks"

COUNTS = {"voc20": 20, "context59": 59, "coco_things": 80, "coco_stuff": 171, "cityscapes": 19, "ade20k": 150}
FILES = [
    *(NAMES / f"{name}.txt" for name in COUNTS),
    BANKS / "benchmarks.txt",
    BANKS / "everyday.txt",
    NAMES / "background.txt",
]

# Adjectives that COCO-Stuff uses as class names: nobody writes them as a noun, so no bank line is made for them.
NOT_NOUNS = {"solid", "structural"}


def entries(path: Path) -> list[list[str]]:
    """Every entry of a word list as [name, synonym, ...]."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").split("\n"))
    return [[word.strip() for word in line.split(",")] for line in lines if line]


def class_names(benchmark: str) -> list[str]:
    return [entry[0] for entry in entries(NAMES / f"{benchmark}.txt")]


def name_of_word(bank: str) -> dict[str, str]:
    return {word: entry[0] for entry in entries(BANKS / f"{bank}.txt") for word in entry}


def test_every_word_list_is_covered_here():
    assert set(NAMES.glob("*.txt")) | set(BANKS.glob("*.txt")) == set(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_format(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#"), "a head comment says what the list is"
    assert text.endswith("\n")
    assert "\r" not in text and "\t" not in text
    assert all(line == line.strip() for line in text.split("\n"))
    for entry in entries(path):
        for word in entry:
            assert re.fullmatch(r"[a-z0-9]+([ -][a-z0-9]+)*", word), (entry[0], word)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_string_twice(path):
    words = [word for entry in entries(path) for word in entry]
    assert sorted(words) == sorted(set(words))
    assert "background" not in words


@pytest.mark.parametrize(("benchmark", "count"), COUNTS.items())
def test_class_names_are_plain_and_complete(benchmark, count):
    assert len(class_names(benchmark)) == count
    assert all(len(entry) == 1 for entry in entries(NAMES / f"{benchmark}.txt")), "class-name files hold no synonyms"


@pytest.mark.parametrize(
    ("benchmark", "at"),
    [
        ("voc20", {0: "aeroplane", 10: "dining table", 14: "person", 15: "potted plant", 19: "tv monitor"}),
        (
            "context59",
            {0: "aeroplane", 1: "bag", 18: "computer", 36: "person", 49: "table", 54: "tv monitor", 58: "wood"},
        ),
        (
            "coco_things",
            {0: "person", 11: "stop sign", 25: "umbrella", 39: "bottle", 60: "dining table", 79: "toothbrush"},
        ),
        ("coco_stuff", {80: "banner", 84: "building", 102: "marble floor", 128: "pavement", 157: "tree", 170: "wood"}),
        ("cityscapes", {0: "road", 8: "vegetation", 11: "person", 12: "rider", 16: "train", 18: "bicycle"}),
        ("ade20k", {0: "wall", 3: "floor", 12: "person", 20: "car", 89: "television", 116: "minibike", 149: "flag"}),
    ],
)
def test_index_order(benchmark, at):
    names = class_names(benchmark)
    assert {index: names[index] for index in at} == at


def test_orders_that_follow_from_a_rule():
    assert class_names("coco_stuff")[:80] == class_names("coco_things")
    for benchmark in ("voc20", "context59"):
        labels = [name.replace(" ", "") for name in class_names(benchmark)]
        assert labels == sorted(labels), f"{benchmark} is alphabetical in the official one-word labels"


def test_benchmarks_bank_is_the_union_of_the_class_names():
    union = sorted({name for benchmark in COUNTS for name in class_names(benchmark)})
    assert entries(BANKS / "benchmarks.txt") == [[name] for name in union]
    assert f"# {len(union)} concepts" in (BANKS / "benchmarks.txt").read_text(encoding="utf-8")


def test_everyday_bank_has_a_sensible_size():
    bank = entries(BANKS / "everyday.txt")
    assert 350 <= len(bank) <= 700
    assert sum(map(len, bank)) >= 3 * len(bank)


def test_everyday_strings_can_be_extracted():
    """A concept is a lemma with at most one compound before it; longer strings could never be met in a caption."""
    too_long = {word for word in name_of_word("everyday") if len(word.split()) > 2}
    assert too_long == {"chest of drawers"}


@pytest.mark.parametrize("benchmark", COUNTS)
def test_everyday_knows_every_class_and_keeps_classes_apart(benchmark):
    name_of = name_of_word("everyday")
    names = [name for name in class_names(benchmark) if name not in NOT_NOUNS]
    assert [name for name in names if name not in name_of] == []
    owners = [name_of[name] for name in names]
    assert [name for name, owner in zip(names, owners, strict=True) if owners.count(owner) > 1] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("person", "person people man woman boy girl child kid baby toddler lady guy crowd"),
        ("person", "player|soccer player|tennis player|skateboarder|snowboarder|skier|surfer|police officer"),
        ("rider", "rider cyclist bicyclist biker motorcyclist jockey"),
        ("bicycle", "bicycle|bike|mountain bike"),
        ("motorcycle", "motorcycle|motorbike|minibike|dirt bike"),
        ("airplane", "airplane aeroplane plane jet"),
        ("car", "car|automobile|taxi|race car"),
        ("truck", "truck|lorry|fire truck"),
        ("train", "train|tram|subway train"),
        ("boat", "boat canoe kayak sailboat rowboat"),
        ("road", "road|street|city street|highway"),
        ("sidewalk", "sidewalk pavement"),
        ("television", "television|tv|tv monitor"),
        ("sofa", "sofa couch loveseat"),
        ("cell phone", "phone|cell phone|cellphone|mobile phone"),
        ("dog", "dog|puppy|poodle|border collie"),
        ("cat", "cat kitten kitty"),
        ("sheep", "sheep lamb"),
        ("cow", "cow cattle bull calf"),
        ("bird", "bird duck pigeon seagull goose"),
        ("sea", "sea ocean"),
        ("grass", "grass lawn"),
        ("river", "river stream creek"),
        ("rock", "rock boulder"),
        ("forest", "forest woodland"),
        ("shirt", "shirt|t shirt|t-shirt|jersey"),
        ("clothes", "clothes clothe clothing apparel"),
        ("ball", "ball|sports ball|tennis ball|soccer ball|basketball"),
        ("tennis racket", "racket|racquet|tennis racket|tennis racquet"),
        ("baseball bat", "bat|baseball bat"),
        ("donut", "donut doughnut"),
        ("trash can", "trash can|ashcan|dustbin"),
    ],
)
def test_everyday_words_reach_their_concept(name, words):
    name_of = name_of_word("everyday")
    for word in words.split("|" if "|" in words else None):
        assert name_of.get(word) == name, word


@pytest.mark.parametrize(
    "lemma", ["pant", "short", "jean", "sunglass", "ski", "leaf", "cloud", "shelf", "scissor", "stair"]
)
def test_everyday_holds_the_lemma_of_words_that_live_in_the_plural(lemma):
    assert lemma in name_of_word("everyday")


@pytest.mark.parametrize("word", ["front", "group", "side", "picture", "camera", "day", "he", "it", "red", "kitchen"])
def test_everyday_leaves_out_what_is_not_a_thing_in_the_picture(word):
    assert word not in name_of_word("everyday")


def test_concepts_of_their_own():
    """Words near each other that must not melt into one concept."""
    name_of = name_of_word("everyday")
    for group in (
        "mountain hill cliff slope",
        "rug carpet mat",
        "stairs stairway step",
        "railing bannister",
        "boat ship",
        "pillow cushion",
        "lake river sea water waterfall fountain",
        "hand face hair head leg arm",
        "person mannequin",
        "bear|teddy bear",
        "dog|hot dog",
        "glass|wine glass|glasses",
        "table|dining table|coffee table|desk",
    ):
        words = group.split("|" if "|" in group else None)
        owners = [name_of[word] for word in words]
        assert len(set(owners)) == len(owners), group
