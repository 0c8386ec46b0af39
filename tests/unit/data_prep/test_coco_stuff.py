import shutil

import pytest
from PIL import Image

import data_prep.coco_stuff as program
from simzss.concepts.bank import read_entries
from simzss.settings.compose import CONF_DIR
from tests.support import official_layouts
from tests.support.masks import MaskProgram, MaskSet, assert_masks


@pytest.fixture
def data(tmp_path):
    return MaskSet("coco_stuff", tmp_path / "set")


@pytest.fixture
def stuff(data, monkeypatch, capsys):
    return MaskProgram(program.main, [f"root={data.root}"], monkeypatch, capsys)


@pytest.fixture
def expected(data):
    return data.expected


@pytest.fixture
def truth(data):
    return data.truth


@pytest.fixture
def folder(data):
    return data.folder


@pytest.fixture
def maps(folder, truth):
    return folder / "stuffthingmaps_trainval2017" / "val2017"


def test_table_closes_up_what_coco_never_used():
    names = [entry.name for entry in read_entries(CONF_DIR / "names/coco_stuff.txt")]
    assert sorted(program.TABLE.values()) == [*range(171), 255] and len(names) == 171
    assert [program.TABLE[number - 1] for number in official_layouts.STUFF] == list(range(171))
    assert names[:80] == list(official_layouts.THINGS.values())
    # A few by hand: the ends, and both sides of every gap.
    known = {0: "person", 10: "fire hydrant", 12: "stop sign", 24: "giraffe", 26: "backpack", 27: "umbrella",
             30: "handbag", 43: "bottle", 45: "wine glass", 64: "bed", 66: "dining table", 69: "toilet", 71: "tv",
             81: "refrigerator", 83: "book", 89: "toothbrush", 91: "banner", 181: "wood"}  # fmt: skip
    assert {label: names[program.TABLE[label]] for label in known} == known


def test_maps_among_the_annotations_are_left_alone(folder, maps, expected, stuff):
    (folder / "annotations").mkdir()
    maps.rename(folder / "annotations" / "val2017")
    before = {path: path.read_bytes() for path in (folder / "annotations" / "val2017").iterdir()}
    for _ in range(2):
        assert "12 of the official" in stuff.run()[0]
    assert {path: path.read_bytes() for path in before} == before
    assert_masks(expected)


def test_maps_given_by_name_and_with_palette(folder, tmp_path, maps, expected, stuff):
    maps.rename(tmp_path / "mine")
    for path in (tmp_path / "mine").iterdir():
        image = Image.fromarray(official_layouts.stored(path))
        image.putpalette([255 - value // 3 for value in range(768)])
        image.save(path)
    stuff.run(f"maps={tmp_path}/mine")
    assert_masks(expected)


def test_missing_photos_and_maps_are_counted_and_named(folder, maps, stuff, expected):
    (folder / "images" / "val2017" / "000000000139.jpg").unlink()
    (maps / "000000004152.png").unlink()
    said, warned = stuff.run()
    assert "masks of 10 of the official 5,000 images" in said
    assert "2 left out for want of 000000000139.jpg, 000000004152.png" in warned
    done = {path: mask for path, mask in expected.items() if path.name[:12] not in ("000000000139", "000000004152")}
    assert sorted((folder / "annotations" / "val2017").iterdir()) == sorted(done)
    assert_masks(done)


@pytest.mark.parametrize("label", [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90, 182, 254])
def test_label_outside_the_table(maps, stuff, label):
    Image.new("L", (40, 24), label).save(maps / "000000000139.png")
    assert f"000000000139.png has label {label}, which the official table does not hold" in stuff.refuse()


def test_map_that_is_none(maps, stuff):
    for content, says in (("RGB", "mode RGB, not of 8-bit labels"), ("I;16", "mode I;16"), ("1", "mode 1")):
        Image.new(content, (40, 24)).save(maps / "000000000139.png")
        assert says in stuff.refuse()
    (maps / "000000000139.png").write_bytes(b"")
    assert "000000000139.png cannot be read" in stuff.refuse()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["root={tmp}/gone"], "gone/images/val2017 is no folder"),
        (["root={tmp}"], "holds no pixel map <id>.png in stuffthingmaps_trainval2017/val2017, val2017"),
        (["maps={tmp}/gone"], "gone holds no pixel map"),
        (["map=x"], "did you mean maps?"),
    ],
)
def test_arguments(tmp_path, stuff, arguments, says):
    (tmp_path / "images" / "val2017").mkdir(parents=True)
    assert says in stuff.refuse(*(argument.format(tmp=tmp_path) for argument in arguments))


def test_photos_to_train_on(stuff, folder, expected):
    shutil.rmtree(folder / "stuffthingmaps_trainval2017" / "train2017")
    for part in ("images", "stuffthingmaps_trainval2017"):
        (folder / part / "val2017").rename(folder / part / "train2017")
    said, _ = stuff.run("part=train2017")
    assert "train2017: masks of 12 of the official 118,287 images (12 made, 0 already there)" in said
    assert_masks({folder / "annotations" / "train2017" / path.name: mask for path, mask in expected.items()})
    assert "part=train is unknown; did you mean train2017?" in stuff.refuse("part=train")
