from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simzss.data.benchmark import Benchmark, open_benchmark, open_benchmarks
from simzss.data.settings import Background, BenchmarksSettings
from simzss.settings.compose import user_presets
from tests.support.files import picture
from tests.support.models import refused

SIZE = (6, 4)  # width, height
SPLIT = "ImageSets/Segmentation/val.txt"
MASK = "SegmentationClass/2007_000042.png"


def photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, SIZE).save(path)


def mask(path: Path, labels: Sequence[int], palette: bool = False, size: tuple[int, int] = SIZE) -> None:
    """An index mask whose first pixels have these labels, the others the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = [*labels, *[labels[-1]] * (size[0] * size[1] - len(labels))]
    image = Image.fromarray(np.array(flat, np.uint8).reshape(size[1], size[0]))
    if palette:
        # Colours that differ from the index, as in the official files: converting would lose the label.
        image.putpalette([(255 - value) % 256 for index in range(256) for value in (index, index * 3, index * 7)])
        assert image.mode == "P"
    image.save(path)


def benchmark(name: str, root: Path, **changes) -> Benchmark:
    return open_benchmark("validation", name, {"root": str(root)} | changes)


@pytest.fixture
def voc(tmp_path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for seed, name in enumerate(("2007_000033", "2007_000042", "train_only")):
        photo(root / "JPEGImages" / f"{name}.jpg", seed)
        mask(root / "SegmentationClass" / f"{name}.png", [0, seed + 1, 20, 255, 15], palette=True)
    photo(root / "JPEGImages" / "without_mask.jpg")
    (root / SPLIT).parent.mkdir(parents=True)
    (root / SPLIT).write_text("2007_000042\n2007_000033\n", encoding="utf-8")
    return root


@pytest.fixture
def ade(tmp_path) -> Path:
    root = tmp_path / "ADEChallengeData2016"
    for seed, name in enumerate(("ADE_val_00000002", "ADE_val_00000001")):
        photo(root / "images" / "validation" / f"{name}.jpg", seed)
        mask(root / "annotations" / "validation" / f"{name}.png", [0, 1, 150, 13])
    return root


@pytest.fixture
def coco(tmp_path) -> Path:
    root = tmp_path / "coco_object"
    photo(root / "images" / "val2017" / "000000000139.jpg")
    mask(root / "annotations" / "val2017" / "000000000139_instanceTrainIds.png", [0, 1, 80, 255])
    # The folder of the official conversion holds other masks too.
    mask(root / "annotations" / "val2017" / "000000000139_labelTrainIds.png", [7])
    return root


@pytest.mark.parametrize(
    ("name", "folder", "names", "num_labels", "labels"),
    [
        ("voc20", "voc", ["2007_000042", "2007_000033"], 20, [255, 1, 19, 255, 14, 14]),
        ("voc21", "voc", ["2007_000042", "2007_000033"], 21, [0, 2, 20, 255, 15, 15]),
        ("ade20k", "ade", ["ADE_val_00000001", "ADE_val_00000002"], 150, [255, 0, 149, 12]),
        ("coco_object", "coco", ["000000000139"], 81, [0, 1, 80, 255]),
        ("coco_things", "coco", ["000000000139"], 80, [255, 0, 79, 255]),
    ],
)
def test_layouts_and_labels(request, name, folder, names, num_labels, labels):
    root = request.getfixturevalue(folder)
    found = benchmark(name, root)
    assert (found.names, len(found), found.num_labels) == (names, len(names), num_labels)
    example = found[0]
    assert example.name == names[0] and example.mask.shape == SIZE[::-1] and example.mask.dtype == torch.int64
    assert example.mask.flatten()[: len(labels)].tolist() == labels
    with Image.open(found.image_path(names[0])) as stored:
        assert example.image.mode == "RGB" and example.image.tobytes() == stored.convert("RGB").tobytes()
    for parent in (root.parent, *([root.parent.parent] if folder == "voc" else [])):
        assert benchmark(name, parent).root == root
    assert benchmark(name, root, limit=1).names == names[:1]


def test_background_of_names_and_of_models(voc):
    found = benchmark("voc21", voc, background={"kind": "threshold", "threshold": 0.6, "with_masks": 0.2})
    assert found.background() == Background(kind="threshold", threshold=0.6)
    assert found.background(with_masks=True).threshold == 0.2
    words = found.background(engineered=True)
    assert (words.kind, words.threshold) == ("words", 0) and {"sky", "wall"} <= set(words.words)
    found = benchmark("voc21", voc, background={"kind": "both", "threshold": 0.6, "words": ["sky", "wall"]})
    assert found.background(with_masks=True) == Background(kind="both", threshold=0.6, words=["sky", "wall"])
    assert benchmark("voc20", voc).background() == Background(threshold=0)


def test_class_names(tmp_path):
    """From a word list beside the data, or from the settings."""
    photo(tmp_path / "images" / "val" / "a.jpg")
    mask(tmp_path / "annotations" / "val" / "a.png", [0, 1, 255])
    (tmp_path / "classes.txt").write_text("cat, kitten\ndog\n", encoding="utf-8")
    listed = benchmark("scenes", tmp_path)
    assert listed[0].mask.flatten()[:3].tolist() == [0, 1, 255]
    given = benchmark("scenes", tmp_path, classes=["cat/kitten", "dog"], engineered=["a cat", "puppy/dog"])
    assert given.class_groups == listed.class_groups == (("cat", "kitten"), ("dog",))
    assert given.engineered_groups == (("a cat",), ("puppy", "dog"))
    (tmp_path / "classes.txt").unlink()
    refused(lambda: benchmark("scenes", tmp_path), "classes.txt")
    refused(lambda: benchmark("scenes", tmp_path, classes="gone.txt"), "validation.classes=gone.txt")
    refused(lambda: benchmark("scenes", tmp_path, classes=[]), "classes=[] is empty")
    refused(lambda: benchmark("scenes", tmp_path, classes=["a", "b"], engineered=["a"]), "engineered lists 1", "has 2")


def test_name_with_a_space(voc):
    photo(voc / "JPEGImages" / "my photo.jpg")
    mask(voc / "SegmentationClass" / "my photo.png", [1], palette=True)
    (voc / SPLIT).write_text("my photo\n2007_000033\n", encoding="utf-8")
    assert benchmark("voc20", voc).names == ["my photo", "2007_000033"]


# Sets of a collection and of a user ------------------------------------------------------------------------------


def test_collection_opens_what_is_at_hand(voc, tmp_path):
    settings = BenchmarksSettings(root=str(tmp_path), sets=["voc20", "ade20k"], limit=1)
    found = open_benchmarks(settings)
    assert list(found) == ["voc20", "ade20k"] and found["voc20"].names == ["2007_000042"]
    assert "images/validation" in str(found["ade20k"])
    refused(lambda: open_benchmarks(settings.replace(sets=["ade20k"])), "holds none of the sets", "ade20k")
    refused(lambda: open_benchmarks(settings.replace(root="/gone")), "benchmark.root=/gone")
    refused(lambda: open_benchmarks(settings.replace(sets=["vok20"])), "benchmark.sets=vok20", "voc20")
    refused(lambda: open_benchmarks(settings.replace(sets=["retrieval"])), "benchmark.sets=retrieval", "segmentation")


def test_preset_of_a_user(voc, tmp_path):
    (tmp_path / "conf" / "benchmark").mkdir(parents=True)
    (tmp_path / "conf" / "names").mkdir()
    (tmp_path / "conf" / "names" / "pets.txt").write_text("cat\ndog\n")
    preset = "defaults: [voc21]\nname: pets\nclasses: names/pets.txt\nnum_classes: 2\nbackground: {with_masks: 0.1}\n"
    (tmp_path / "conf" / "benchmark" / "pets.yaml").write_text(preset + "engineered: null\n")
    with user_presets(tmp_path / "conf"):
        found = benchmark("pets", voc)
    assert found.class_groups == (("cat",), ("dog",)) and len(found) == 2
    assert (found.background().threshold, found.background(with_masks=True).threshold) == (0.65, 0.1)
    refused(lambda: benchmark("pets", voc), "validation.benchmark=pets")


# Bad input --------------------------------------------------------------------------------------------------------


def write_split(data: bytes):
    return lambda root: (root / SPLIT).write_bytes(data)


def removed(name: str):
    return lambda root: (root / name).unlink()


def broken(name: str):
    return lambda root: (root / name).write_bytes(b"no image")


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (removed(SPLIT), ["split", SPLIT, "does not exist"]),
        (write_split(b"\n"), ["voc20", SPLIT, "no image"]),
        (write_split(b"\xff\xfe\x00"), [SPLIT]),
        (removed("JPEGImages/2007_000033.jpg"), ["JPEGImages/2007_000033.jpg", "1 of 2"]),
        (removed(MASK), [MASK, "1 of 2"]),
        (lambda root: mask(root / MASK, [1], palette=True, size=SIZE[::-1]), [MASK, "(6, 4)", "(4, 6)"]),
        (lambda root: picture(0, SIZE).save(root / MASK), [MASK]),  # colours instead of labels
        (lambda root: mask(root / MASK, [1, 0, 21, 3], palette=True), [MASK, "label 21", "voc20"]),
        (broken(MASK), ["voc20", MASK]),
        (broken("JPEGImages/2007_000042.jpg"), ["voc20", "2007_000042.jpg"]),
    ],
)
def test_broken_set(voc, breaks, says):
    breaks(voc)
    refused(lambda: benchmark("voc20", voc)[0], *says)


@pytest.mark.parametrize("folder", ["images", "annotations"])
def test_folders_that_do_not_match(ade, folder):
    (gone, other) = sorted((ade / folder / "validation").iterdir())
    gone.unlink()
    refused(lambda: benchmark("ade20k", ade), str(gone), "1 of 2")
    if folder == "annotations":
        other.unlink()
        refused(lambda: benchmark("ade20k", ade), "no masks", str(other.parent))


def test_wrong_settings(voc, ade, tmp_path):
    refused(lambda: benchmark("voc20", tmp_path / "gone"), f"validation.root={tmp_path}/gone is no folder")
    refused(lambda: benchmark("voc20", voc / SPLIT), "validation.root", SPLIT)
    refused(lambda: benchmark("ade20k", voc), "ade20k", str(voc), "images/validation", "annotations/validation")
    refused(lambda: benchmark("voc20", ade), "voc20", str(ade), "JPEGImages", "SegmentationClass")
    refused(lambda: benchmark("retrieval", voc), "validation.benchmark=retrieval", "segmentation")
    refused(lambda: benchmark("voc20", voc, limit=-1), "limit=-1")
    refused(lambda: benchmark("ade20k", ade, ignore_labels=[255])[0], "label 0")
    refused(lambda: benchmark("voc20", voc, classes="names/cityscapes.txt"), "lists 19 classes", "voc20 has 20")


def test_image_of_too_many_pixels(voc, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE[0] * SIZE[1] // 2 - 1)
    refused(lambda: benchmark("voc20", voc)[0], "voc20")
