from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simzss.config import load_choice, to_plain
from simzss.data.benchmark import Benchmark, BenchmarkConfig
from simzss.errors import InputError
from tests.support.files import picture

SIZE = (6, 4)  # width, height


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
    options = to_plain(load_choice("benchmark", name)) | {"root": str(root)} | changes
    return Benchmark(BenchmarkConfig(**options))


@pytest.fixture
def voc(tmp_path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for seed, name in enumerate(("2007_000033", "2007_000042", "train_only")):
        photo(root / "JPEGImages" / f"{name}.jpg", seed)
        mask(root / "SegmentationClass" / f"{name}.png", [0, seed + 1, 20, 255, 15], palette=True)
    photo(root / "JPEGImages" / "without_mask.jpg")
    split = root / "ImageSets" / "Segmentation" / "val.txt"
    split.parent.mkdir(parents=True)
    split.write_text("2007_000042\n2007_000033\n", encoding="utf-8")
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


def first_labels(example, count: int) -> list[int]:
    assert example.mask.shape == (SIZE[1], SIZE[0])
    assert example.mask.dtype == torch.int64
    return example.mask.flatten()[:count].tolist()


def test_voc_without_background(voc):
    found = benchmark("voc20", voc)
    assert len(found) == 2 and found.num_labels == 20
    assert found.names == ["2007_000042", "2007_000033"]
    assert found.class_groups[0] == ("aeroplane",) and len(found.class_groups) == 20
    assert first_labels(found[0], 6) == [255, 1, 19, 255, 14, 14]
    assert found[1].name == "2007_000033"
    assert first_labels(found[1], 5) == [255, 0, 19, 255, 14]
    with Image.open(voc / "JPEGImages" / "2007_000042.jpg") as stored:
        assert found[0].image.mode == "RGB" and found[0].image.tobytes() == stored.convert("RGB").tobytes()


def test_voc_with_background(voc):
    found = benchmark("voc21", voc)
    assert found.num_labels == 21 and len(found.class_groups) == 20
    assert first_labels(found[0], 5) == [0, 2, 20, 255, 15]


def test_a_model_trained_with_masks_may_have_a_threshold_of_its_own(voc):
    found = benchmark("voc21", voc, background={"kind": "threshold", "threshold": 0.6, "with_masks": 0.2})
    assert found.background() == {"kind": "threshold", "threshold": 0.6, "words": ()}
    assert found.background(with_masks=True) == {"kind": "threshold", "threshold": 0.2, "words": ()}
    assert "with_masks" in found.config.background
    found = benchmark("voc21", voc, background={"kind": "threshold", "threshold": 0.6})
    assert found.background(with_masks=True)["threshold"] == 0.6


def test_ade(ade):
    found = benchmark("ade20k", ade)
    assert found.names == ["ADE_val_00000001", "ADE_val_00000002"]
    assert found.num_labels == 150
    assert first_labels(found[0], 4) == [255, 0, 149, 12]


def test_coco_with_and_without_background(coco):
    for name, labels, expected in (
        ("coco_object", 81, [0, 1, 80, 255]),
        ("coco_things", 80, [255, 0, 79, 255]),
    ):
        found = benchmark(name, coco)
        assert found.names == ["000000000139"]
        assert found.num_labels == labels
        assert first_labels(found[0], 4) == expected


def test_classes_that_come_with_the_data(tmp_path):
    photo(tmp_path / "images" / "val" / "a.jpg")
    mask(tmp_path / "annotations" / "val" / "a.png", [0, 1, 255])
    (tmp_path / "classes.txt").write_text("cat, kitten\ndog\n", encoding="utf-8")
    found = benchmark("scenes", tmp_path)
    assert found.class_groups == (("cat", "kitten"), ("dog",))
    assert first_labels(found[0], 3) == [0, 1, 255]
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"classes\.txt"):
        benchmark("scenes", tmp_path)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_root_is_found_from_its_parents(voc, level):
    found = benchmark("voc20", [voc, *voc.parents][level])
    assert found.root == voc
    assert len(found) == 2


def test_root_is_found_from_its_parent(ade, coco):
    assert benchmark("ade20k", ade.parent).root == ade
    assert benchmark("coco_object", coco.parent).root == coco


def test_limit(voc, ade):
    assert benchmark("voc20", voc, limit=1).names == ["2007_000042"]
    assert benchmark("ade20k", ade, limit=1).names == ["ADE_val_00000001"]
    assert len(benchmark("voc20", voc, limit=5)) == 2


def refused(make, *parts) -> None:
    """`make` fails with one line that holds every part."""
    with pytest.raises(InputError) as caught:
        make()
    message = str(caught.value)
    assert all(str(part) in message for part in parts), message
    assert "\n" not in message


def test_root_missing(tmp_path, voc):
    refused(lambda: benchmark("voc20", tmp_path / "gone"), "benchmark.root", tmp_path / "gone")
    file = voc / "ImageSets" / "Segmentation" / "val.txt"
    refused(lambda: benchmark("voc20", file), "benchmark.root", file)


def test_layout_is_another(voc, ade):
    refused(lambda: benchmark("ade20k", voc), "ade20k", voc, "images/validation", "annotations/validation")
    refused(lambda: benchmark("voc20", ade), "voc20", ade, "JPEGImages", "SegmentationClass")


def test_split_is_missing(voc):
    split = voc / "ImageSets" / "Segmentation" / "val.txt"
    split.unlink()
    refused(lambda: benchmark("voc20", voc), "split", split)


def test_split_is_empty(voc):
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("\n", encoding="utf-8")
    refused(lambda: benchmark("voc20", voc), "voc20")


def test_empty_split_is_named(voc):
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("\n", encoding="utf-8")
    refused(lambda: benchmark("voc20", voc), "val.txt")


def test_no_mask_at_all(ade):
    for path in (ade / "annotations" / "validation").iterdir():
        path.unlink()
    refused(lambda: benchmark("ade20k", ade), "no masks", ade / "annotations" / "validation")


def test_split_names_a_missing_photo(voc):
    gone = voc / "JPEGImages" / "2007_000033.jpg"
    gone.unlink()
    refused(lambda: benchmark("voc20", voc), gone, "1 of 2")


def test_mask_of_the_split_is_missing(voc):
    gone = voc / "SegmentationClass" / "2007_000042.png"
    gone.unlink()
    refused(lambda: benchmark("voc20", voc), gone, "1 of 2")


def test_photo_of_a_mask_is_missing(ade):
    gone = ade / "images" / "validation" / "ADE_val_00000001.jpg"
    gone.unlink()
    refused(lambda: benchmark("ade20k", ade), gone, "1 of 2")


def test_mask_of_a_photo_is_missing(ade):
    gone = ade / "annotations" / "validation" / "ADE_val_00000001.png"
    gone.unlink()
    refused(lambda: benchmark("ade20k", ade), gone)


def test_name_with_a_space(voc):
    photo(voc / "JPEGImages" / "my photo.jpg")
    mask(voc / "SegmentationClass" / "my photo.png", [1], palette=True)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("my photo\n2007_000033\n", encoding="utf-8")
    assert benchmark("voc20", voc).names == ["my photo", "2007_000033"]


def test_negative_limit_is_refused(voc):
    refused(lambda: benchmark("voc20", voc, limit=-1), "limit")


def test_split_that_is_no_text(voc):
    split = voc / "ImageSets" / "Segmentation" / "val.txt"
    split.write_bytes(b"\xff\xfe\x00")
    refused(lambda: benchmark("voc20", voc), split)


def test_sizes_differ(voc):
    path = voc / "SegmentationClass" / "2007_000042.png"
    mask(path, [1], palette=True, size=(SIZE[1], SIZE[0]))
    refused(lambda: benchmark("voc20", voc)[0], path, "(6, 4)", "(4, 6)")


def test_mask_with_colours_instead_of_labels(voc):
    path = voc / "SegmentationClass" / "2007_000042.png"
    picture(0, SIZE).save(path)
    refused(lambda: benchmark("voc20", voc)[0], path)


@pytest.mark.parametrize(("name", "label"), [("voc20", 21), ("voc21", 21), ("voc21", 254)])
def test_label_outside_the_classes(voc, name, label):
    path = voc / "SegmentationClass" / "2007_000042.png"
    mask(path, [1, 0, label, 3], palette=True)
    refused(lambda: benchmark(name, voc)[0], path, f"label {label}", name)


def test_label_below_the_classes(ade):
    path = ade / "annotations" / "validation" / "ADE_val_00000001.png"
    mask(path, [0, 5])
    refused(lambda: benchmark("ade20k", ade, ignore_labels=(255,))[0], path, "label 0")


@pytest.mark.parametrize("folder", ["JPEGImages", "SegmentationClass"])
def test_unreadable_image(voc, folder):
    (path,) = (voc / folder).glob("2007_000042.*")
    path.write_bytes(b"no image")
    refused(lambda: benchmark("voc20", voc)[0], "voc20", path.name)


def test_image_of_too_many_pixels(voc, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE[0] * SIZE[1] // 2 - 1)
    refused(lambda: benchmark("voc20", voc)[0], "voc20")
