"""Train a tiny model, then measure it: the numbers against a NumPy program that reads the PNG files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simzss.checksums import SUMS
from simzss.cli import dispatch
from simzss.evaluation.segmentation import mask_writer
from simzss.reports.markdown import escaped
from tests.support.evaluating import evaluated
from tests.support.files import contents
from tests.support.models import refused, save_backbone
from tests.support.processes import WORLD, on_two_processes
from tests.support.training import COLOURS, coloured_shards, logged, train

VOC = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
       "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"]  # fmt: skip
# As in the official files: 0 background, 1 to 20 the classes, 255 the border.
LABELS = {"dog": 12, "cat": 8, "car": 7, "tree": 16}  # trees count as potted plants
SIZES = [(64, 64), (90, 60), (50, 77), (64, 48), (33, 35)]
PROTOCOL = ("protocol=whole", "protocol.short_side=64", "protocol.crop_size=64", "protocol.stride=32",
            "protocol.templates=photo", "protocol.temperature=0.05")  # fmt: skip
WHOLE = (*PROTOCOL, "precision=32-true")
RUN = ("trainer.epochs=3", "validation.benchmark=voc20", *PROTOCOL)


def write_benchmark(root: Path, seed: int = 0, sizes=SIZES) -> Path:
    """Photos of coloured squares with their masks, in the layout of PASCAL VOC."""
    random = np.random.default_rng(seed)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = []
    for number, (width, height) in enumerate(sizes):
        pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
        labels = np.zeros((height, width), np.uint8)
        for noun, left in zip(random.choice(list(COLOURS), 2, replace=False), (0, width // 2), strict=True):
            part = (slice(height // 4, height * 3 // 4), slice(left + width // 10, left + width * 2 // 5))
            pixels[part], labels[part] = COLOURS[noun], LABELS[noun]
            labels[part][:2] = 255
        # Any of the first labels anywhere below, so that many classes have hits and misses, and others may not occur.
        labels[-(height // 5) :] = random.integers(1, 13, (height // 5, width))
        names.append(f"2007_{number:06d}")
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{names[-1]}.jpg", quality=95)
        mask = Image.fromarray(labels)
        mask.putpalette([(index * 37 + channel) % 256 for index in range(256) for channel in range(3)])
        mask.save(root / "SegmentationClass" / f"{names[-1]}.png")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(names) + "\n")
    return root


def by_numpy(root: Path, masks: dict[str, Path]) -> dict:
    """The scores of predicted index masks, pixel by pixel from the PNG files."""
    truth, predicted = [], []
    for name, path in masks.items():
        labels = np.asarray(Image.open(root / "SegmentationClass" / f"{name}.png")).astype(int)
        counted = (labels > 0) & (labels < 255)
        truth.append(labels[counted] - 1)
        found = np.asarray(Image.open(path))
        assert found.shape == labels.shape and found.max() < 20
        predicted.append(found[counted].astype(int))
    truth, predicted = np.concatenate(truth), np.concatenate(predicted)
    per_class = {}
    for index, name in enumerate(VOC):
        either = ((truth == index) | (predicted == index)).sum()
        per_class[name] = 100 * ((truth == index) & (predicted == index)).sum() / either if either else None
    present = [value for value in per_class.values() if value is not None]
    return {"mIoU": sum(present) / len(present), "aAcc": 100 * (truth == predicted).mean(), "per_class": per_class}


def assert_same_scores(found: dict, expected: dict) -> None:
    assert found["mIoU"] == pytest.approx(expected["mIoU"], abs=1e-6)
    assert found["aAcc"] == pytest.approx(expected["aAcc"], abs=1e-6)
    assert list(found["per_class"]) == VOC
    for name, value in expected["per_class"].items():
        assert found["per_class"][name] == (None if value is None else pytest.approx(value, abs=1e-6)), name


def measure(folder: Path, output: Path, root: Path, *extra: str) -> dict:
    """`simzss eval` in this process; its results.json."""
    model = [] if any(argument.startswith("model=") for argument in extra) else [f"model={folder}/run/model"]
    dispatch(["eval", *model, "benchmark=voc20", f"benchmark.root={root}", f"output_dir={output}", *WHOLE, *extra])
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with a benchmark, a backbone file, shards and a run that was validated on the benchmark."""
    folder = tmp_path_factory.mktemp("measure")
    write_benchmark(folder / "voc")
    save_backbone(folder / "vit.safetensors")
    coloured_shards(folder / "shards")
    extra = (f"backbone.weights={folder}/vit.safetensors", f"validation.root={folder}/voc", *RUN)
    train(folder / "shards", folder / "run", *extra)
    return folder


@pytest.fixture(scope="module")
def measured(trained):
    """(folder, results.json) of an evaluation with everything that it can write."""
    extra = ("save_masks=true", "compare_untrained=true", "overlays=3")
    return trained, measure(trained, trained / "eval", trained / "voc", *extra)


def names_of(root: Path) -> list[str]:
    return (root / "ImageSets" / "Segmentation" / "val.txt").read_text().split()


def test_scores_equal_numpy_s(measured):
    folder, results = measured
    masks = {name: folder / "eval" / "masks" / f"{name}.png" for name in names_of(folder / "voc")}
    expected = by_numpy(folder / "voc", masks)
    assert_same_scores(results["voc20"], expected)
    assert len(set(expected["per_class"].values())) > 3 and None in expected["per_class"].values()


def test_shape_of_the_results(measured):
    _, results = measured
    assert list(results) == ["voc20", "voc20_untrained"]
    for result in results.values():
        assert list(result)[:6] == ["mIoU", "aAcc", "per_class", "protocol", "images", "official_images"]
        assert result["images"] == len(SIZES)
        assert result["protocol"] == {
            "name": "whole",
            "inference": "whole",
            "short_side": 64,
            "crop_size": 64,
            "stride": 32,
            "templates": "photo",
            "merge": "mean",
            "temperature": 0.05,
            "readout": "concept",
            "precision": "32-true",
            "features": "last",
            "correlate": "none",
            "refine": "none",
            "background": {"kind": "none", "threshold": 0.0, "words": []},
        }


def test_untrained_is_the_model_before_its_first_step(measured, tmp_path):
    """The same model after one step with a learning rate of zero."""
    folder, results = measured
    still = (f"backbone.weights={folder}/vit.safetensors", "optim.lr=0.0", "trainer.max_steps=1")
    train(folder / "shards", tmp_path / "run", *still)
    expected = measure(tmp_path, tmp_path / "eval", folder / "voc")["voc20"]
    found = results["voc20_untrained"]
    assert (found["mIoU"], found["aAcc"], found["per_class"]) == (
        expected["mIoU"], expected["aAcc"], expected["per_class"],
    )  # fmt: skip
    assert found["per_class"] != results["voc20"]["per_class"]


def test_segment_writes_the_masks_of_eval(measured, tmp_path, capsys):
    """The other command, with the classes given as words."""
    folder, results = measured
    photos = [str(folder / "voc" / "JPEGImages" / f"{name}.jpg") for name in names_of(folder / "voc")]
    arguments = [f"model={folder}/run/model", f"classes={','.join(VOC)}", f"output_dir={tmp_path}", *WHOLE]
    dispatch(["segment", *photos, *arguments])
    names = names_of(folder / "voc")
    written = [str(tmp_path / f"{name}_{kind}.png") for name in names for kind in ("overlay", "mask")]
    assert capsys.readouterr().out.split("\n")[:-1] == written
    for name in names:
        assert (tmp_path / f"{name}_mask.png").read_bytes() == (folder / "eval/masks" / f"{name}.png").read_bytes()
        with (
            Image.open(folder / "voc/JPEGImages" / f"{name}.jpg") as photo,
            Image.open(tmp_path / f"{name}_overlay.png"),
        ):
            assert np.asarray(Image.open(tmp_path / f"{name}_mask.png")).shape == (photo.height, photo.width)
    assert_same_scores(
        results["voc20"], by_numpy(folder / "voc", {name: tmp_path / f"{name}_mask.png" for name in names})
    )


def test_segment_with_background_words(measured, tmp_path):
    folder, _ = measured
    photo = folder / "voc" / "JPEGImages" / f"{names_of(folder / 'voc')[0]}.jpg"
    common = [str(photo), f"model={folder}/run/model", *WHOLE]
    dispatch(["segment", *common, "classes=dog,cat,floor,wall", f"output_dir={tmp_path}/flat"])
    words = ["background.kind=words", "background.words=[floor,wall]"]
    dispatch(["segment", *common, "classes=dog,cat", *words, f"output_dir={tmp_path}/words"])
    flat, found = (np.asarray(Image.open(next((tmp_path / d).glob("*_mask.png")))) for d in ("flat", "words"))
    assert (found == np.where(flat >= 2, 0, flat + 1)).all()


def test_report_shows_three_photos(measured):
    folder, results = measured
    page = (folder / "eval" / "report.html").read_text(encoding="utf-8")
    shown = [name for name in names_of(folder / "voc") if name in page]
    assert len(shown) >= 3  # three at random, and two worst and two best of five
    assert page.count("<figure") == 3 + 2 + 2
    assert len(re.findall(r"<img[^>]+src=\"data:image/", page)) >= 3
    for result in results.values():
        assert f"{result['mIoU']:.1f}" in page


def test_limit_takes_the_first_images(measured, tmp_path):
    folder, _ = measured
    found = measure(folder, tmp_path / "eval", folder / "voc", "benchmark.limit=2", "overlays=0")
    first = names_of(folder / "voc")[:2]
    expected = by_numpy(folder / "voc", {name: folder / "eval" / "masks" / f"{name}.png" for name in first})
    assert_same_scores(found["voc20"], expected)
    assert list(found) == ["voc20"] and found["voc20"]["images"] == 2
    assert not (tmp_path / "eval" / "masks").exists()


def test_validation_logs_the_same_scores(measured):
    folder, results = measured
    scores = logged(folder / "run", "val/miou/voc20")
    assert list(scores) == [3, 7, 11]  # after each epoch of four steps
    assert scores[11] == pytest.approx(results["voc20"]["mIoU"], abs=1e-4)
    assert len(set(scores.values())) > 1


def test_validation_does_not_disturb_training(measured, tmp_path):
    folder, _ = measured
    plain = (f"backbone.weights={folder}/vit.safetensors", "trainer.epochs=3")
    train(folder / "shards", tmp_path / "run", *plain)
    assert logged(tmp_path / "run") == logged(folder / "run")


def test_learning_rate_follows_the_schedule(trained):
    """Twelve steps, one of them warm-up, then a cosine to zero."""
    rates = logged(trained / "run", "lr")
    expected = [1e-3] + [1e-3 * 0.5 * (1 + np.cos(np.pi * (step - 1) / 11)) for step in range(1, 12)]
    assert list(rates.values()) == pytest.approx(expected, rel=1e-5)


# Two processes ----------------------------------------------------------------------------------------------------


def test_two_processes_measure_as_one(trained, tmp_path):
    """Five images on two processes, and one image, of which the second process gets none."""
    limits = (None, 1)
    found = on_two_processes(lambda rank: [evaluated(trained, limit) for limit in limits], tmp_path)
    for case, limit in enumerate(limits):
        expected = evaluated(trained, limit)
        assert expected["counts"]["plain confusion"].sum() > 100
        for rank in range(WORLD):
            for part, counts in expected["counts"].items():
                assert torch.equal(found[rank][case]["counts"][part], counts), (limit, rank, part)
            assert found[rank][case]["result"] == expected["result"]
        visited = [name for rank in range(WORLD) for name in found[rank][case]["visited"]]
        assert sorted(visited) == sorted(expected["visited"]) and len(set(visited)) == len(visited)
    assert [len(found[rank][0]["visited"]) for rank in range(WORLD)] == [3, 2]


# Bugs -------------------------------------------------------------------------------------------------------------


def test_untrained_twin_of_a_model_that_moved(trained, tmp_path):
    for name, data in contents(trained / "run" / "model").items():
        (tmp_path / "run" / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "model" / name).write_bytes(data)
    (tmp_path / "run" / "model" / SUMS).unlink(missing_ok=True)  # this folder is changed on purpose
    path = tmp_path / "run" / "model" / "config.json"
    path.write_text(path.read_text().replace(f"{trained}/vit.safetensors", "/nowhere/vit.safetensors"))
    (tmp_path / "here.safetensors").write_bytes((trained / "vit.safetensors").read_bytes())
    moved = ("benchmark.limit=1", "overlays=0", f"backbone.weights={tmp_path}/here.safetensors")
    alone = measure(tmp_path, tmp_path / "plain", trained / "voc", *moved)
    found = measure(tmp_path, tmp_path / "eval", trained / "voc", *moved, "compare_untrained=true")
    assert found["voc20"] == alone["voc20"] and "voc20_untrained" in found


def test_benchmark_without_a_pixel_that_counts(trained, tmp_path):
    root = write_benchmark(tmp_path / "voc", sizes=[(64, 64)])
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(root / "SegmentationClass" / "2007_000000.png")
    found = measure(trained, tmp_path / "eval", root)
    assert found["voc20"]["mIoU"] is None and found["voc20"]["aAcc"] is None


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b"])
def test_masks_stay_in_their_folder(tmp_path, name):
    refused(lambda: mask_writer(tmp_path / "masks", ["fine", name], 3), "outside", str(tmp_path / "masks"))


def test_names_cannot_steer_a_terminal_or_a_page(trained, tmp_path, monkeypatch, capsys):
    """Control characters and markup in names of files and classes, in what is printed and in reports."""
    monkeypatch.chdir(tmp_path)
    name = "a\x1b[2jb<script>"
    (tmp_path / f"{name}\n.jpg").write_bytes((trained / "voc/JPEGImages/2007_000000.jpg").read_bytes())
    model = f"model={trained}/run/model"
    dispatch(["segment", f"./{name}\n.jpg", model, f"classes=cat,{name}", "output_dir=out", *WHOLE])
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.count("\n") == 2 and r"a\x1b[2jb" in out
    (tmp_path / "words.txt").write_text("\n".join([name, *map(str, range(19))]))
    measure(trained, tmp_path / "out", trained / "voc", "benchmark.classes=words.txt", "engineered=false")
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "\x1b" not in page and "b<script>" not in page and r"a\x1b[2jb&lt;script&gt;" in page
    assert escaped(name) == r"a\\x1b\[2jb\<script>"
