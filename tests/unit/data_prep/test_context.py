import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data_prep.context as program
from simzss.errors import InputError
from tests.support import official_layouts
from tests.support.masks import MaskProgram, MaskSet, assert_masks
from tests.support.program import exit_code


@pytest.fixture
def data(tmp_path):
    return MaskSet("context", tmp_path / "set")


@pytest.fixture
def context(data, monkeypatch, capsys):
    return MaskProgram(program.main, [f"root={data.root}"], monkeypatch, capsys)


@pytest.fixture
def expected(data):
    return data.expected


@pytest.fixture
def truth(data):
    return data.splits


@pytest.fixture
def folder(data):
    return data.folder


def split(folder, phase):
    return (folder / "ImageSets" / "SegmentationContext" / f"{phase}.txt").read_text(encoding="utf-8").splitlines()


def change(folder, edit):
    """Edit trainval_merged.json."""
    path = folder / "trainval_merged.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_classes_are_the_official_ones_in_the_order_of_the_names():
    names = program.class_names()
    assert [official_layouts.CONTEXT[number] for number in program.CATEGORIES] == [n.replace(" ", "") for n in names]
    assert names == sorted(names) and len(names) == 59
    assert list(program.CATEGORIES) == sorted(official_layouts.CONTEXT)


def test_masks_and_splits(context, folder, truth, expected):
    said, _ = context.run()
    assert_masks(expected)
    assert sorted((folder / "SegmentationClassContext").iterdir()) == sorted(expected)
    assert split(folder, "train") == sorted(truth["train"]) and split(folder, "val") == sorted(truth["val"])
    assert "train: masks of 6 of the official 4,996 images (6 made, 0 already there)" in said
    assert "val: masks of 10 of the official 5,104 images" in said
    assert "2 images of phase test" in said
    assert max(mask.max() for mask in expected.values()) > 50  # and everything from rare classes is 0


@pytest.mark.parametrize("inside", ["", "VOCdevkit", "VOCdevkit/VOC2010"])
def test_root_and_annotations_may_be_anywhere_near(tmp_path, folder, expected, monkeypatch, capsys, inside):
    (folder / "trainval_merged.json").rename(folder.parent / "trainval_merged.json")
    MaskProgram(program.main, [f"root={tmp_path / 'set' / inside}"], monkeypatch, capsys).run()
    assert_masks(expected)


def test_annotations_given_by_name(tmp_path, folder, expected, context):
    (folder / "trainval_merged.json").rename(tmp_path / "mine.json")
    context.run(f"annotations={tmp_path}/mine.json")
    assert_masks(expected)


def test_polygons_are_drawn_too(context, folder, truth):
    name = sorted(truth["val"])[0]
    height, width = truth["val"][name].shape
    number = int(name.replace("_", ""))
    box = [2.0, 1.0, 9.0, 1.0, 9.0, 7.0, 2.0, 7.0]

    def edit(content):
        content["annos_segmentation"] = [
            {"id": 1, "image_id": number, "category_id": 284, "segmentation": [box, [20.0, 20.0, 25.0, 25.0]]}
        ]

    change(folder, edit)
    context.run()
    mask = np.zeros((height, width), np.uint8)
    mask[1:7, 2:9] = 37
    assert_masks({folder / "SegmentationClassContext" / f"{name}.png": mask})


def without(key):
    return lambda content: content.pop(key)


def image(**changes):
    return lambda content: content["images"][0].update(changes)


def annotation(**changes):
    return lambda content: content["annos_segmentation"][0].update(changes)


def category(**changes):
    return lambda content: content["categories"][0].update(changes)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (without("images"), "images"),
        (without("annos_segmentation"), "annos_segmentation"),
        (without("categories"), "categories"),
        (lambda content: content["images"][0].pop("phase"), "phase"),
        (lambda content: content["annos_segmentation"][0].pop("segmentation"), "segmentation"),
        (lambda content: content.update(images="many"), "images[]"),
        (image(height="tall"), "tall"),
        (image(height=-3), "has 24 x 40 pixels (height x width), its annotation -3 x 40"),
        (image(height=10**9), "its annotation 1000000000 x 40"),
        (image(image_id=[1]), "unhashable"),
        (annotation(id="A7", category_id=7777), "annotation A7 has category 7777"),
        (annotation(id="A7", image_id=7777), "annotation A7 is of image 7777"),
        (annotation(id="A7", segmentation="none"), "annotation A7: the segmentation is neither"),
        (annotation(id="A7", segmentation={"size": [2, 2], "counts": [4]}), "annotation A7: the region is for"),
        (annotation(id="A7", segmentation=[]), "annotation A7: the segmentation holds no polygon"),
        (annotation(id="A7", segmentation=[[1, 2, 3, 4, 5]]), "annotation A7: a polygon has a coordinate"),
        (annotation(id="A7", segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "annotation A7: a polygon has"),
        (annotation(id="A7", segmentation=[[1, 2, 3, 4, 5, 1e9]]), "annotation A7: a polygon has"),
        (annotation(id="A7", segmentation=[[1, 2, "3", 4, 5, 6]]), "annotation A7: a polygon is no list of numbers"),
        (annotation(id="A7", segmentation=["box"]), "annotation A7: a polygon is no list of numbers"),
        (category(name="airplane"), "category 2 is airplane, in PASCAL Context it is aeroplane"),
        (category(category_id=3), "category 2"),
    ],
)
def test_annotations_of_another_shape(context, folder, edit, says):
    change(folder, edit)
    error = context.refuse()
    assert "trainval_merged.json" in error or "pixels" in error
    assert says in error


@pytest.mark.parametrize(
    "counts", [[1, 2], [10**12], [-1, 961], ["3"], 7, "", "é", "zzz", "0", "P", "~~", "oooooooooo0", None]
)
def test_broken_run_lengths(context, folder, counts):
    def edit(content):
        first = content["annos_segmentation"][0]
        first["segmentation"]["counts"] = counts

    change(folder, edit)
    assert "annotation" in (error := context.refuse()) and ("counts" in error or "run lengths" in error)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["root={tmp}/gone"], "gone"),
        (["annotations={tmp}/gone.json"], "gone.json does not exist"),
        (["annotations={tmp}/list.json"], "list.json is no annotation file"),
        (["annotations={tmp}/broken.json"], "broken.json is not readable JSON"),
        (["phases=[test]"], "phases=test"),
        (["phases=[]"], "phases=[]"),
        (["overwrite=perhaps"], "overwrite=perhaps"),
        (["root_dir=x"], "root_dir"),
    ],
)
def test_arguments(tmp_path, context, arguments, says):
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    assert says in context.refuse(*(argument.format(tmp=tmp_path) for argument in arguments))


def test_masks_that_cannot_be_written(context, folder):
    (folder / "SegmentationClassContext").write_text("a file", encoding="utf-8")
    assert "SegmentationClassContext" in (error := context.refuse()) and "cannot be written" in error


def test_run_that_dies_leaves_no_half_mask(context, folder, expected, monkeypatch):
    whole = Image.Image.save

    def half(self, stream, **options):
        whole(self, stream, **options)
        if len(list(Path(stream.name).parent.iterdir())) == 4:
            stream.truncate(30)
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half)
    assert exit_code(program.main, context.arguments, monkeypatch) == 130
    monkeypatch.setattr(Image.Image, "save", whole)
    assert len(list((folder / "SegmentationClassContext").iterdir())) == 3
    said, _ = context.run()
    assert "(3 made, 3 already there)" in said
    assert_masks(expected)


def test_disk_full(context, folder, monkeypatch):
    def full(self, stream, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert "2008_000002.png cannot be written: no space left on device" in context.refuse()
    assert not list((folder / "SegmentationClassContext").iterdir())


def test_read_annotations_says_what_is_wrong_without_the_program(folder):
    with pytest.raises(InputError, match=r"gone\.json does not exist"):
        program.read_annotations(folder / "gone.json")
