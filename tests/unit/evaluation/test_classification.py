import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from simzss.evaluation.classification import ClassificationConfig, classify, read_class_folders
from simzss.segmentation.prompts import embed_names, templates
from tests.support.models import refused, scratch_model

CPU = torch.device("cpu")
WORLD = 2
FOLDERS = {"boat": 2, "cat": 3, "dining_table": 1, "dog": 4, "old_tree": 2, "red_car": 2, "sky": 1}
LIMITS = (None, 1)
BROKEN = "dog/1.png"
LIST = "ship, boat\ncat, kitten, kitty\ntable\ndog\ntree\ncar\nsky\n"


def scene(seed: int) -> Image.Image:
    """Blocks of a few colours, so that no two images look alike to a network."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (3, 2, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(20, axis=0).repeat(26, axis=1))


def write_set(folder: Path, broken: str | None = None, **changes) -> ClassificationConfig:
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
    options = {"name": "tiny", "root": str(folder), "classes": None, "templates": "scene"}
    return ClassificationConfig(**options | changes)


def run(config: ClassificationConfig, readout: str = "sentence", **options) -> dict:
    settings = {"batch_size": 4, "num_workers": 0} | options
    return classify(scratch_model(), config, readout, "32-true", CPU, **settings)


def image_by_hand(path: Path) -> np.ndarray:
    pixels = v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))
    squashed = v2.functional.resize(pixels, [64, 64], interpolation=InterpolationMode.BICUBIC)
    vector = scratch_model().backbone(squashed[None]).cls[0].double().numpy()
    return vector / np.linalg.norm(vector)


def by_numpy(root: Path, groups: list[list[str]], prompts: str, readout: str, leave_out: tuple[str, ...] = ()) -> dict:
    """Scores by sorting each image's cosines."""
    weights = []
    for names in groups:
        vectors = embed_names(scratch_model(), names, templates(prompts), readout).double().numpy()
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


@pytest.mark.parametrize(("prompts", "readout"), [("scene", "sentence"), ("photo", "concept"), ("name", "both")])
def test_against_numpy(prompts, readout, tmp_path):
    config = write_set(tmp_path / "set", templates=prompts)
    found = run(config, readout)
    assert_same(found, by_numpy(tmp_path / "set", own_names(), prompts, readout))
    assert found["kind"] == "classification" and found["skipped"] == [] and found["images"] == 15
    assert list(found["per_class"]) == ["boat", "cat", "dining table", "dog", "old tree", "red car", "sky"]
    assert found["top1"] < found["top5"] < 100
    assert json.loads(json.dumps(found)) == found
    protocol = {"templates": prompts, "readout": readout, "precision": "32-true", "image_size": 64, "classes": None}
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
    found = run(ClassificationConfig("tiny", str(tmp_path / "set"), "names/voc20.txt", "name"))
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
    write_set(tmp_path / "set")
    chosen = {limit: ClassificationConfig("tiny", str(tmp_path / "set"), None, "photo", limit) for limit in (3, 9, 99)}
    assert read_class_folders(chosen[3]).names == ("boat/0.png", "cat/0.png", "dining_table/0.png")
    assert read_class_folders(chosen[9]).names[6:] == ("sky/0.png", "boat/1.png", "cat/1.png")
    assert read_class_folders(chosen[9]).labels == (0, 1, 2, 3, 4, 5, 6, 0, 1)
    assert len(read_class_folders(chosen[99]).names) == 15
    found = run(chosen[3])
    assert found["images"] == 3 and found["per_class"]["sky"] is None and len(found["per_class"]) == 7


# Two processes ----------------------------------------------------------------------------------------------------


def worker(rank: int, address: Path, root: str, path: Path) -> None:
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=WORLD)
    found = [run(ClassificationConfig("tiny", root, None, "photo", limit)) for limit in LIMITS]
    Path(f"{path}.{rank}").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_measure_as_one(tmp_path):
    """Fifteen images of which one process cannot read one, and one image, of which the second process gets none."""
    root = write_set(tmp_path / "set", broken=BROKEN).root
    arguments = (tmp_path / "rendezvous", root, tmp_path / "found")
    mp.start_processes(worker, arguments, nprocs=WORLD, start_method="fork")
    expected = [run(ClassificationConfig("tiny", root, None, "photo", limit)) for limit in LIMITS]
    assert [(result["images"], len(result["skipped"])) for result in expected] == [(14, 1), (1, 0)]
    for rank in range(WORLD):
        assert json.loads(Path(f"{tmp_path / 'found'}.{rank}").read_text()) == expected


# Bad input --------------------------------------------------------------------------------------------------------


def test_settings_out_of_range(tmp_path):
    config = write_set(tmp_path / "set")
    refused(lambda: ClassificationConfig("tiny", "set", None, "photo", limit=0), "benchmark.limit=0")
    refused(lambda: run(config, batch_size=0), "batch_size=0")
    refused(lambda: run(config, num_workers=-1), "num_workers=-1")
    refused(lambda: run(config, readout="sentense"), "readout=sentense", "sentence")
    refused(lambda: run(ClassificationConfig("tiny", config.root, None, "foto")), "templates=foto", "photo")


def test_missing_folder(tmp_path):
    refused(lambda: run(ClassificationConfig("tiny", "/nowhere", None, "photo")), "benchmark.root=/nowhere")
    refused(lambda: run(ClassificationConfig("tiny", str(tmp_path), None, "photo")), str(tmp_path), "no class folder")


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


def test_word_list_that_is_not_there(tmp_path):
    config = write_set(tmp_path / "set", classes="names/nowhere.txt")
    refused(lambda: run(config), "names/nowhere.txt")


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
