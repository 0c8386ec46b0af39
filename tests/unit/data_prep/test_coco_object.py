import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import data_prep.coco_object as program
from data_prep.regions import decode_region
from tests.support import official_layouts
from tests.support.masks import MaskProgram, MaskSet, assert_masks


@pytest.fixture
def data(tmp_path):
    return MaskSet("coco_object", tmp_path / "set")


@pytest.fixture
def coco(data, monkeypatch, capsys):
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


def change(folder, edit):
    """Edit instances_val2017.json."""
    path = folder / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_classes_are_the_official_ones_in_the_order_of_the_names():
    assert program.class_names() == list(official_layouts.THINGS.values())


def test_the_fixture_holds_every_kind_of_region(folder, truth):
    content = json.loads((folder / "annotations" / "instances_val2017.json").read_text(encoding="utf-8"))
    kinds = [type(found) if isinstance(found := record["segmentation"], list) else type(found["counts"])
             for record in content["annotations"]]  # fmt: skip
    assert kinds.count(list) > 10 and str in kinds
    assert any(isinstance(record["segmentation"], dict) and record["iscrowd"] for record in content["annotations"])
    areas = [record["area"] for record in content["annotations"]]
    assert len(set(areas)) < len(areas)


def test_smaller_instances_are_on_top_whatever_their_order(coco, folder, truth):
    name, size = "000000004152", truth["000000004152"].shape
    boxes = [(2, 2, 5, 5), (0, 0, 20, 20), (1, 1, 10, 10), (3, 3, 6, 6)]  # the first and the last are equally large

    def edit(content):
        content["annotations"] = [
            {"id": i, "image_id": 4152, "category_id": i + 1, "area": float((x1 - x0) * (y1 - y0)), "iscrowd": 0,
             "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
            for i, (x0, y0, x1, y1) in enumerate(boxes)
        ]  # fmt: skip

    change(folder, edit)
    coco.run()
    mask = np.zeros(size, np.uint8)
    mask[0:20, 0:20], mask[1:10, 1:10], mask[2:5, 2:5], mask[3:6, 3:6] = 2, 3, 1, 4
    assert_masks({folder / "annotations" / "val2017" / f"{name}_instanceTrainIds.png": mask})


def test_missing_photos_and_annotations_are_counted_and_named(coco, folder, expected):
    (folder / "images" / "val2017" / "000000000139.jpg").rename(folder / "images" / "val2017" / "000000000140.jpg")
    said, warned = coco.run()
    assert "masks of 11 of the official 5,000 images" in said
    assert "2 left out for want of 000000000139.jpg, annotations of 000000000140.jpg" in warned
    done = {path: mask for path, mask in expected.items() if "000000000139" not in path.name}
    assert sorted((folder / "annotations" / "val2017").iterdir()) == sorted(done)
    assert_masks(done)


def test_no_image_listed(coco, folder):
    change(folder, lambda content: content.update(images=[], annotations=[]))
    assert "no mask could be made; missing: annotations of 000000000139.jpg" in coco.refuse()


def test_instances_given_by_name(tmp_path, folder, expected, coco):
    (folder / "annotations" / "instances_val2017.json").rename(tmp_path / "mine.json")
    coco.run(f"instances={tmp_path}/mine.json")
    assert_masks(expected)


def first(key, **changes):
    return lambda content: content[key][0].update(changes)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda content: content.pop("images"), "images"),
        (lambda content: content.pop("annotations"), "annotations"),
        (lambda content: content["annotations"][0].pop("area"), "area"),
        (lambda content: content["images"][0].pop("height"), "height"),
        (first("annotations", area="large"), "large"),
        (first("annotations", id=5, category_id=12), "annotation 5 has category 12"),
        (first("annotations", id=5, image_id=1), "annotation 5 is of image 1"),
        (first("annotations", id=5, segmentation=[[1, 2]] * 3 + [7]), "annotation 5: a polygon is no list"),
        (first("annotations", id=5, segmentation={"size": [1, 1], "counts": [1]}), "annotation 5: the region is for"),
        (first("images", width=41), "has 24 x 40 pixels (height x width), its annotation 24 x 41"),
        (first("categories", name="human"), "human stands for person"),
        (first("categories", id=91), "bicycle stands for person"),
        (lambda content: content["categories"].append({"id": 92, "name": "banner"}), "81 categories"),
    ],
)
def test_annotations_of_another_shape(coco, folder, edit, says):
    change(folder, edit)
    assert says in coco.refuse()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["root={tmp}/gone"], "gone/images/val2017 is no folder"),
        (["instances={tmp}/gone.json"], "gone.json does not exist"),
        (["instances={tmp}/text.json"], "text.json is no COCO instances file"),
        (["instances={tmp}"], "is not readable JSON"),
        (["overwrites=true"], "overwrite"),
    ],
)
def test_arguments(tmp_path, coco, arguments, says):
    (tmp_path / "text.json").write_text('"text"', encoding="utf-8")
    assert says in coco.refuse(*(argument.format(tmp=tmp_path) for argument in arguments))


def test_slanted_polygons_hold_what_lies_inside():
    rng = np.random.default_rng(0)
    y, x = np.indices((50, 40)) + 0.5
    for _ in range(30):
        points = rng.uniform(0, 1, (3, 2)) * (40, 50)
        # Signed distance of every pixel centre to the three edges: inside, it has the same sign for all.
        edges = np.roll(points, -1, axis=0) - points
        distances = [(ex * (y - py) - ey * (x - px)) / np.hypot(ex, ey)
                     for (ex, ey), (px, py) in zip(edges, points, strict=True)]  # fmt: skip
        turn = np.sign(np.cross(*np.pad(edges[:2], ((0, 0), (0, 1))))[2])
        inside = np.min([turn * distance for distance in distances], axis=0)
        drawn = decode_region([points.ravel().tolist()], 50, 40)
        assert drawn[inside > 1].all() and not drawn[inside < -1].any()
        assert (~drawn).any()


def test_run_lengths_are_those_of_coco():
    rng = np.random.default_rng(0)
    for size in official_layouts.SIZES:
        region = rng.random(size) < rng.random()
        lengths = official_layouts.run_lengths(region)
        packed = {"size": list(size), "counts": official_layouts.pack(lengths)}
        by_coco = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
        assert by_coco["counts"].decode() == packed["counts"]
        assert np.array_equal(decode_region(packed, *size), region)
        assert np.array_equal(decode_region({"size": list(size), "counts": lengths}, *size), region)


def test_long_runs_unpack():
    region = np.zeros((3000, 2000), bool)
    region[1, 3] = region[2999, 1999] = True
    packed = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))["counts"].decode()
    assert np.array_equal(decode_region({"size": [3000, 2000], "counts": packed}, 3000, 2000), region)
