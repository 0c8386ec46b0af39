"""What every program that makes the masks of a benchmark does, on small sets in the official layouts."""

import pytest
from PIL import Image

from data_prep import cityscapes, coco_object, coco_stuff, context
from tests.support.masks import MaskProgram, MaskSet, assert_masks, assert_reruns, assert_same, seen_by_benchmark

MODULES = {"cityscapes": cityscapes, "coco_object": coco_object, "coco_stuff": coco_stuff, "context": context}
SAID = {
    "cityscapes": "val: masks of 12 of the official 500 images (12 made, 0 already there)",
    "coco_object": "val2017: masks of 12 of the official 5,000 images (12 made, 0 already there)",
    "coco_stuff": "val2017: masks of 12 of the official 5,000 images (12 made, 0 already there)",
    "context": "val: masks of 10 of the official 5,104 images (10 made, 0 already there)",
}


@pytest.fixture(params=MODULES)
def name(request):
    return request.param


@pytest.fixture
def data(tmp_path, name):
    return MaskSet(name, tmp_path / "set")


@pytest.fixture
def program(name, data, monkeypatch, capsys):
    return MaskProgram(MODULES[name].main, [f"root={data.root}"], monkeypatch, capsys)


def test_masks(program, data, name):
    before = {path for path in data.folder.rglob("*") if path.is_file()}
    assert SAID[name] in program.run()[0]
    assert_masks(data.expected)
    made = {path for path in data.folder.rglob("*") if path.is_file()} - before
    assert {path for path in made if path.suffix == ".png"} == data.expected.keys()
    assert_same(seen_by_benchmark("context60" if name == "context" else name, data.root), data.splits["val"])


def test_reruns(program, data, name):
    if name == "context":  # which has another split
        program.arguments.append("phases=[val]")
    names = {path.name for path in data.expected if path.stem in data.splits["val"]} if name == "context" else None
    assert_reruns(program, {p: mask for p, mask in data.expected.items() if names is None or p.name in names})


def test_missing_and_unreadable_photos_are_counted_and_named(program, data):
    broken = sorted(data.photos.rglob("*.*"))[1]
    data.photo.unlink()
    broken.write_text("no image", encoding="utf-8")
    _, warned = program.run()
    assert data.photo.name in warned and f"{broken.name} (unreadable)" in warned
    left = {path: mask for path, mask in data.expected.items() if path.exists()}
    assert len(left) == len(data.expected) - 2
    assert_masks(left)


def test_no_photo_at_all(program, data):
    for path in data.photos.rglob("*.*"):
        path.unlink()
    assert f"no mask could be made; missing: {data.photo.name}" in program.refuse()


def test_photo_of_another_size(program, data):
    height, width = Image.open(data.photo).size[::-1]
    Image.new("RGB", (7, 5)).save(data.photo)
    said = program.refuse()
    assert f"{data.photo.name} has 5 x 7 pixels (height x width), its annotation {height} x {width}" in said


@pytest.mark.parametrize(
    ("argument", "part"),
    [("root={tmp}/gone", "gone"), ("overwrites=true", "overwrite"), ("overwrite=perhaps", "overwrite=perhaps")],
)
def test_arguments(tmp_path, program, argument, part):
    assert part in program.refuse(argument.format(tmp=tmp_path))


def test_program_needs_its_root(program):
    program.arguments.clear()
    assert "root=" in program.refuse()
