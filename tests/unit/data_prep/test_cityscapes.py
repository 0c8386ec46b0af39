import json

import numpy as np
import pytest
from PIL import Image

import data_prep.cityscapes as program
from simzss.concepts.bank import read_entries
from simzss.settings.compose import CONF_DIR
from tests.support import official_layouts
from tests.support.masks import MaskProgram, MaskSet, assert_masks

DRAWN = "frankfurt/frankfurt_000000_000019"  # has polygons, but no label image


@pytest.fixture
def data(tmp_path):
    return MaskSet("cityscapes", tmp_path / "set")


@pytest.fixture
def cityscapes(data, monkeypatch, capsys):
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
def polygons(folder, truth):
    return folder / "gtFine" / "val" / f"{DRAWN}_gtFine_polygons.json"


def test_table_is_the_official_one():
    assert dict(zip(program.LABELS, program.TABLE.items(), strict=True)) == official_layouts.CITYSCAPES
    names = [entry.name for entry in read_entries(CONF_DIR / "names/cityscapes.txt")]
    assert [program.LABELS[number] for number in program.EVALUATED] == names


def test_polygons_alone_give_the_same_masks(cityscapes, folder, expected):
    for path in folder.rglob("*_labelIds.png"):
        path.unlink()
    cityscapes.run()
    assert_masks(expected)


def test_label_images_alone_give_the_same_masks(cityscapes, folder, expected):
    for path in folder.rglob("*_polygons.json"):
        path.unlink()
    said, warned = cityscapes.run()
    assert "9 of the official 500" in said and f"{DRAWN.split('/')[1]}_gtFine_labelIds.png" in warned
    assert_masks({path: mask for path, mask in expected.items() if path.exists()})


def test_the_fixture_needs_both_ways(folder, truth):
    kinds = ("labelIds.png", "polygons.json")
    assert [len(list((folder / "gtFine" / "val").rglob(f"*_{kind}"))) for kind in kinds] == [9, 12]
    assert len(set().union(*(np.unique(mask) for mask in truth.values()))) > 10


def test_missing_photos_and_labels_are_counted_and_named(cityscapes, folder, expected, polygons):
    polygons.unlink()
    photo = folder / "leftImg8bit" / "val" / "lindau" / "lindau_000001_000019_leftImg8bit.png"
    photo.unlink()
    said, warned = cityscapes.run()
    assert "val: masks of 10 of the official 500 images" in said
    assert f"2 left out for want of {DRAWN.split('/')[1]}_gtFine_labelIds.png, {photo.name}" in warned
    assert_masks({path: mask for path, mask in expected.items() if path.name[:13] not in (
        "frankfurt_000", "lindau_000001")})  # fmt: skip


def test_empty_folders(cityscapes, tmp_path):
    for name in ("leftImg8bit", "gtFine"):
        (tmp_path / "empty" / name / "val").mkdir(parents=True)
    assert "no mask could be made; missing: images" in cityscapes.refuse(f"root={tmp_path}/empty")


@pytest.mark.parametrize("label", [34, 200, 255])
def test_label_outside_the_table(cityscapes, folder, label):
    name = "lindau/lindau_000001_000019_gtFine_labelIds.png"
    Image.new("L", (24, 40), label).save(folder / "gtFine" / "val" / name)
    assert f"{name} has label {label}, which the official table does not hold" in cityscapes.refuse()


def thing(**changes):
    return lambda content: content["objects"][0].update({"deleted": 0} | changes)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda content: content.pop("imgHeight"), "imgHeight"),
        (lambda content: content.pop("objects"), "objects"),
        (lambda content: content.update(objects=["road"]), "objects[]"),
        (lambda content: content.update(imgWidth="wide"), "wide"),
        (lambda content: content.update(imgWidth=-1), "holds no Cityscapes polygons"),
        (lambda content: content.update(imgWidth=10**12), "holds no Cityscapes polygons"),
        (lambda content: content.update(imgWidth=39), "has 24 x 40 pixels (height x width), its annotation 24 x 39"),
        (thing(label="street"), "label street is unknown"),
        (thing(label="roadgroupgroup"), "label roadgroupgroup is unknown"),
        (thing(label="road", polygon=[[1, 2, 3]]), "polygon"),
        (thing(label="road", polygon=[]), "polygon"),
        (thing(label="road", polygon=[["a", "b"], ["c", "d"]]), "polygon"),
    ],
)
def test_polygons_of_another_shape(cityscapes, polygons, edit, says):
    content = json.loads(polygons.read_text(encoding="utf-8"))
    edit(content)
    polygons.write_text(json.dumps(content), encoding="utf-8")
    assert says in cityscapes.refuse()


def test_broken_files(cityscapes, folder, polygons):
    polygons.write_text("{", encoding="utf-8")
    assert "polygons.json is not readable JSON" in cityscapes.refuse()
    polygons.write_text("[]", encoding="utf-8")
    assert "holds no Cityscapes polygons" in cityscapes.refuse()
    (polygons.parent / f"{DRAWN.split('/')[1]}_gtFine_labelIds.png").write_bytes(b"\x89PNG")
    assert "labelIds.png cannot be read" in cityscapes.refuse()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["root={tmp}/gone"], "gone/leftImg8bit/val is no folder"),
        (["root={tmp}"], "gtFine/val is no folder"),
        ([], "root"),
        (["root={tmp}", "split=val"], "unknown key 'split'"),
    ],
)
def test_arguments(tmp_path, cityscapes, arguments, says):
    (tmp_path / "leftImg8bit" / "val").mkdir(parents=True)
    cityscapes.arguments.clear()
    assert says in cityscapes.refuse(*(argument.format(tmp=tmp_path) for argument in arguments))
