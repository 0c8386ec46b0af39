import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from simzss.data.settings import ClassificationSettings
from simzss.evaluation.classification import classify, read_class_folders
from simzss.segmentation.prompts import embed_names, templates
from tests.support.evaluating import scene
from tests.support.models import refused, scratch_model
from tests.support.processes import on_two_processes

CPU = torch.device("cpu")
FOLDERS = {"boat": 2, "cat": 3, "dining_table": 1, "dog": 4, "old_tree": 2, "red_car": 2, "sky": 1}
BROKEN = "dog/1.png"
LIST = "ship, boat\ncat, kitten, kitty\ntable\ndog\ntree\ncar\nsky\n"


def write_set(folder: Path, broken: str | None = None, **changes) -> ClassificationSettings:
    """A few images a class, and things beside them that are none."""
    seed = 0
    for name, count in FOLDERS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "notes.txt").write_text("no image")
        for number in range(count):
            seed += 1
            scene(seed).save(folder / name / f"{number}.png")
    (folder / "dog" / "0.png").rename(folder / "dog" / "0.PNG")
    (folder / ".cache").mkdir()
    (folder / "readme.txt").write_text("no class")
    if broken is not None:
        (folder / broken).write_bytes(b"no image")
    return ClassificationSettings(**{"root": str(folder), "templates": "scene"} | changes)


def run(config: ClassificationSettings, text_pooling: str = "sentence", **options) -> dict:
    settings = {"batch_size": 4, "num_workers": 0} | options
    return classify(scratch_model(), config, text_pooling, "32-true", CPU, **settings).plain()


def image_by_hand(path: Path) -> np.ndarray:
    pixels = v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))
    squashed = v2.functional.resize(pixels, [64, 64], interpolation=InterpolationMode.BICUBIC)
    vector = scratch_model().backbone(squashed[None]).cls[0].double().numpy()
    return vector / np.linalg.norm(vector)


def by_numpy(
    root: Path, groups: list[list[str]], prompts: str, text_pooling: str, leave_out: tuple[str, ...] = ()
) -> dict:
    """Scores by sorting each image's cosines."""
    weights = []
    for names in groups:
        vectors = embed_names(scratch_model(), names, templates(prompts), text_pooling).double().numpy()
        weights.append(vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0)))
    places: dict[str, list[int]] = {}
    for label, (folder, names) in enumerate(zip(sorted(FOLDERS), groups, strict=True)):
        paths = [path for path in sorted((root / folder).iterdir()) if path.suffix.lower() == ".png"]
        paths = [path for path in paths if f"{folder}/{path.name}" not in leave_out]
        orders = [np.argsort(-(np.stack(weights) @ image_by_hand(path))).tolist() for path in paths]
        places[names[0]] = [order.index(label) for order in orders]
    every = np.array([place for found in places.values() for place in found])
    per_class = {name: 100 * float(np.mean([p < 1 for p in found])) for name, found in places.items() if found}
    return {"top1": 100 * (every < 1).mean(), "top5": 100 * (every < 5).mean(), "images": len(every),
            "per_class": dict.fromkeys(places) | per_class}  # fmt: skip


def assert_same(found: dict, expected: dict) -> None:
    for key in ("top1", "top5", "images", "per_class"):
        assert found[key] == pytest.approx(expected[key]), key


def own_names() -> list[list[str]]:
    return [[folder.replace("_", " ")] for folder in sorted(FOLDERS)]


# Scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "text_pooling", "recorded"),
    [("scene", "sentence", "sentence"), ("photo", "tokens", "concept"), ("name", "both", "both")],
)
def test_against_numpy(prompts, text_pooling, recorded, tmp_path):
    config = write_set(tmp_path / "set", templates=prompts)
    found = run(config, text_pooling)
    assert_same(found, by_numpy(tmp_path / "set", own_names(), prompts, text_pooling))
    assert found["kind"] == "classification" and found["skipped"] == [] and found["images"] == 15
    assert list(found["per_class"]) == ["boat", "cat", "dining table", "dog", "old tree", "red car", "sky"]
    assert found["top1"] < found["top5"] < 100
    assert json.loads(json.dumps(found)) == found
    protocol = {"templates": prompts, "readout": recorded, "precision": "32-true", "image_size": 64, "classes": None}
    assert found["protocol"].items() >= protocol.items()


def test_word_list_names_the_sorted_folders(tmp_path):
    (tmp_path / "names.txt").write_text(LIST)
    config = write_set(tmp_path / "set", classes=str(tmp_path / "names.txt"))
    found = run(config)
    groups = [[name.strip() for name in line.split(",")] for line in LIST.splitlines()]
    assert_same(found, by_numpy(tmp_path / "set", groups, "scene", "sentence"))
    assert list(found["per_class"]) == ["ship", "cat", "table", "dog", "tree", "car", "sky"]
    assert read_class_folders(config).classes[1] == ("cat", "kitten", "kitty")


def test_word_list_of_the_configuration_folder(tmp_path):
    for number in range(20):
        (tmp_path / "set" / f"{number:02d}").mkdir(parents=True)
        scene(number).save(tmp_path / "set" / f"{number:02d}" / "a.jpg")
    found = run(ClassificationSettings(root=str(tmp_path / "set"), classes="names/voc20.txt", templates="name"))
    assert list(found["per_class"])[:2] == ["aeroplane", "bicycle"] and len(found["per_class"]) == 20


def test_unreadable_images_do_not_count(tmp_path, caplog):
    config = write_set(tmp_path / "set", broken=BROKEN)
    (tmp_path / "set" / "sky" / "0.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        found = run(config)
    empty, unknown = (f"unreadable image: {what}" for what in ("the file is empty", "no known format"))
    assert found["skipped"] == [{"name": "sky/0.png", "reason": empty}, {"name": BROKEN, "reason": unknown}]
    assert "skipped 2 samples" in caplog.text
    leave_out = (BROKEN, "sky/0.png")
    assert_same(found, by_numpy(tmp_path / "set", own_names(), "scene", "sentence", leave_out))
    assert found["per_class"]["sky"] is None and found["images"] == 13


def test_workers_and_batches_change_nothing(tmp_path):
    config = write_set(tmp_path / "set", broken=BROKEN)
    expected = run(config)
    assert run(config, num_workers=2) == expected
    assert run(config, batch_size=1) == expected
    assert run(config, batch_size=1000) == expected


def test_limit_takes_from_each_class_in_turn(tmp_path):
    config = write_set(tmp_path / "set")
    chosen = {limit: config.replace(limit=limit) for limit in (3, 9, 99)}
    assert read_class_folders(chosen[3]).names == ("boat/0.png", "cat/0.png", "dining_table/0.png")
    assert read_class_folders(chosen[9]).names[6:] == ("sky/0.png", "boat/1.png", "cat/1.png")
    assert read_class_folders(chosen[9]).labels == (0, 1, 2, 3, 4, 5, 6, 0, 1)
    assert len(read_class_folders(chosen[99]).names) == 15
    found = run(chosen[3])
    assert found["images"] == 3 and found["per_class"]["sky"] is None and len(found["per_class"]) == 7


def test_two_processes_measure_as_one(tmp_path):
    """Fifteen images of which one process cannot read one, and one image, of which the second process gets none."""
    config = write_set(tmp_path / "set", broken=BROKEN)

    def measure():
        return [run(config.replace(limit=limit)) for limit in (None, 1)]

    expected = measure()
    assert [(result["images"], len(result["skipped"])) for result in expected] == [(14, 1), (1, 0)]
    assert on_two_processes(lambda rank: measure(), tmp_path) == [expected, expected]


# Bad input --------------------------------------------------------------------------------------------------------


def test_wrong_settings(tmp_path):
    config = write_set(tmp_path / "set")
    (tmp_path / "none").mkdir()
    refused(lambda: run(config, text_pooling="sentense"), "text_pooling=sentense", "sentence")
    refused(lambda: run(config.replace(templates="foto")), "templates=foto", "photo")
    refused(lambda: run(config.replace(root="/nowhere")), "benchmark.root=/nowhere")
    refused(lambda: run(config.replace(root=str(tmp_path / "none"))), str(tmp_path / "none"), "no class folder")
    refused(lambda: run(config.replace(classes="names/nowhere.txt")), "benchmark.classes=names/nowhere.txt")


def test_class_folder_without_an_image(tmp_path):
    config = write_set(tmp_path / "set")
    (tmp_path / "set" / "empty").mkdir()
    (tmp_path / "set" / "empty" / "notes.txt").write_text("no image")
    refused(lambda: run(config), f"{tmp_path}/set/empty holds no image", "jpg")


@pytest.mark.parametrize("text", [LIST + "moon\n", LIST.replace("sky\n", "")])
def test_word_list_of_another_length(text, tmp_path):
    (tmp_path / "names.txt").write_text(text)
    config = write_set(tmp_path / "set", classes=str(tmp_path / "names.txt"))
    length = len(text.splitlines())
    refused(lambda: run(config), f"{tmp_path}/names.txt names {length} classes", f"{config.root} has 7 class folders")


def test_folders_of_one_name(tmp_path):
    config = write_set(tmp_path / "set")
    (tmp_path / "set" / "red car").mkdir()
    scene(0).save(tmp_path / "set" / "red car" / "a.png")
    refused(lambda: run(config), "'red car' is listed twice")


def test_no_readable_image(tmp_path):
    config = write_set(tmp_path / "set")
    for path in (tmp_path / "set").rglob("*.[pP][nN][gG]"):
        path.write_bytes(b"")
    refused(lambda: run(config), "none of the 15 images", "boat/0.png", "the file is empty")
