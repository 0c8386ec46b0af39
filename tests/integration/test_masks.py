"""Train a mask head on a tiny model, measure it, segment with it."""

import csv
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2

from simzss.cli import dispatch
from simzss.commands.verbs import settings_of
from simzss.data.settings import Background
from simzss.models.checkpoint import load_model
from simzss.models.simzss import SimZSS
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import AggregateSettings, Protocol
from simzss.settings.compose import load_choice
from simzss.training.mask_module import MaskModule
from tests.support.mask_runs import (
    HELD_OUT,
    VOC,
    fixed_points,
    mask_arguments,
    squares,
    train_as_one_of_two,
    train_squares,
    write_model,
    write_squares,
)
from tests.support.models import refused
from tests.support.threads import one_thread  # noqa: F401
from tests.support.training import logged
from tests.support.two_nodes import free_port

EPOCHS = 20
STEPS = 2 * EPOCHS  # six photos, batches of three
MAIN = ("masks.exclude_classes=[car]", f"trainer.epochs={EPOCHS}", "trainer.checkpoint_every_n_epochs=10",
        "optim.warmup=0.1", "optim.betas=[0.9,0.98]", "mask_loss.class_weight=4.0")  # fmt: skip
PROTOCOL = ("protocol.templates=photo", "precision=32-true")
SEEN = [name for name in VOC if name != "car"]


@dataclass
class Trained:
    """A run in `folder/run`: what it logged, and the module that was trained."""

    folder: Path
    lines: list[str]
    module: MaskModule

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def model(self) -> Path:
        return self.run / "model"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with `voc` and `base`, the model to train on."""
    folder = tmp_path_factory.mktemp("masks")
    write_squares(folder / "voc")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def trained(data) -> Trained:
    """A run without one class."""
    modules: list[MaskModule] = []
    begin = MaskModule.on_train_start

    def note(module: MaskModule) -> None:
        modules.append(module)
        logging.getLogger("simzss").info("training begins")
        begin(module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskModule, "on_train_start", note)
        lines = train_squares(data, data / "run", *MAIN)
    return Trained(data, lines, modules[0].cpu().eval())


@pytest.fixture(scope="module")
def loaded(trained) -> SimZSS:
    return load_model(trained.model)


def measure(trained: Trained, output: Path, part: str, *extra: str, model: Path | None = None) -> dict:
    """results.json of `simzss eval` on the photos of the run's train.txt or held_out.txt."""
    dispatch(["eval", f"model={model or trained.model}", f"benchmark.root={trained.folder}/voc",
              f"benchmark.split={trained.run}/{part}.txt", f"output_dir={output}", "num_workers=0", "overlays=0",
              *PROTOCOL, *extra])  # fmt: skip
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory) -> tuple[Path, dict]:
    """Folder and results of an evaluation on the photos that were trained on."""
    output = tmp_path_factory.mktemp("eval")
    return output, measure(trained, output, "train", "benchmark=voc20", "engineered=false", "save_masks=true")["voc20"]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


# The run -------------------------------------------------------------------------------------------------------------


def test_run_folder(trained):
    run, arguments = trained.run, mask_arguments(trained.folder, trained.run, *MAIN)
    expected = settings_of("train-masks", arguments)
    assert (run / "checkpoints/last.ckpt").exists() and settings_of("train-masks", [], run / "config.yaml") == expected
    named = {name: (run / f"{name}.txt").read_text().splitlines() for name in ("train", "held_out")}
    assert named == {"train": [f"photo{i}" for i in range(8) if f"photo{i}" not in HELD_OUT], "held_out": HELD_OUT}
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    assert [row["step"] for row in rows] == list(range(STEPS))
    for row in rows:
        parts = [row[f"train/loss_{name}"] for name in ("class", "bce", "dice")]
        assert row["train/loss"] == pytest.approx(sum(parts), rel=1e-5) and min(parts) > 0
        assert row["train/empty_crops"] == 0
    warm = [1e-2 * (step + 1) / 4 for step in range(4)]
    cosine = [5e-3 * (1 + np.cos(np.pi * step / (STEPS - 4))) for step in range(STEPS - 4)]
    assert [row["lr"] for row in rows] == pytest.approx(warm + cosine, rel=1e-5)


def test_model_folder(trained, loaded):
    """Beside the base's own content, in the names of the format, there is the head alone."""
    config = json.loads((trained.model / "config.json").read_text())
    head = config["multires"]["head"]
    assert config["multires"]["trained"] == SEEN
    assert [head["learned_share"], head["unseen_share"], head["depths"]] == [0.2, 0.9, [0, 2]]
    assert config["settings"] == {"readout": "concept", "head_steps": STEPS}
    base = json.loads((trained.folder / "base" / "config.json").read_text())
    assert {key for key in base if config[key] != base[key]} == {"settings"}
    before, after = load_file(trained.folder / "base" / "model.safetensors"), tensors(trained.run)
    assert {name for name in after if not name.startswith("multires.")} == set(before)
    assert "multires.no_object" in after and all(torch.equal(value, after[name]) for name, value in before.items())
    for name, value in trained.module.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_cost_is_logged_before_training(trained):
    """Parameters, memory, time of a step: one line."""
    (line,) = [line for line in trained.lines if "trainable parameters" in line]
    number = r"(\d+\.\d+)"
    found = re.fullmatch(rf"trainable parameters: {number} M, frozen: {number} M; memory: {number} GiB, of which "
                         rf"{number} for a step; a step of 3 crops: {number} s", line)  # fmt: skip
    assert found, line
    sizes = {True: 0, False: 0}
    for name, parameter in trained.module.model.named_parameters():
        sizes[name.startswith("mask_head.")] += parameter.numel()
    learning, frozen, memory, live, _ = map(float, found.groups())
    assert learning == pytest.approx(sizes[True] / 1e6, abs=0.0051)
    assert frozen == pytest.approx(sizes[False] / 1e6, abs=0.051)
    assert memory == pytest.approx(live + 4 * (sizes[False] + 3 * sizes[True]) / 2**30, abs=0.011)
    assert "masks: 6 photos of voc21, 2 held out, 19 classes" in trained.lines
    assert trained.lines.index(line) < trained.lines.index("training begins")


def test_class_vectors_are_those_that_segment(trained, loaded):
    classifier = make_segmenter(loaded).classifier(SEEN)
    torch.testing.assert_close(trained.module.class_vectors, classifier.weights, rtol=0, atol=1e-6)


def test_few_photos_are_learned_by_heart(trained, measured, tmp_path):
    """Against the same head before its first step, and one with another seed."""
    losses = logged(trained.run)
    train_squares(trained.folder, tmp_path / "run", *MAIN, "optim.lr=0.0", "trainer.max_steps=1")
    assert logged(tmp_path / "run") == {0: losses[0]}
    train_squares(trained.folder, tmp_path / "other", *MAIN, "trainer.max_steps=1", "seed=1")
    assert logged(tmp_path / "other")[0] != losses[0]
    extra = ("benchmark=voc20", "engineered=false")
    before = measure(trained, tmp_path / "eval", "train", *extra, model=tmp_path / "run" / "model")["voc20"]
    after = measured[1]
    assert sum(list(losses.values())[-4:]) < 0.4 * sum(list(losses.values())[:4])
    assert after["trained_with_masks"]["seen"] > max(35, 3 * before["trained_with_masks"]["seen"])
    assert after["aAcc"] > 30 + before["aAcc"]


def test_resumed_equals_uninterrupted(data, tmp_path, monkeypatch):
    """The uninterrupted run is validated too, which changes nothing."""
    short = "trainer.epochs=2"
    validation = ("validation.benchmark=voc20", f"validation.root={data}/voc", "validation.limit=3")
    train_squares(data, tmp_path / "whole", short, *validation)
    begin = MaskModule.on_train_epoch_start

    def crash(module: MaskModule) -> None:
        if module.current_epoch == 1:
            raise RuntimeError("power cut")
        begin(module)

    with monkeypatch.context() as patch:
        patch.setattr(MaskModule, "on_train_epoch_start", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train_squares(data, tmp_path / "cut", short)
    assert list(logged(tmp_path / "cut")) == [0, 1]
    refused(lambda: train_squares(data, tmp_path / "cut", short), "holds a run already")
    train_squares(data, tmp_path / "cut", short, "resume=last")
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole") and list(logged(tmp_path / "whole")) == [0, 1, 2, 3]
    expected, found = tensors(tmp_path / "whole"), tensors(tmp_path / "cut")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    lines = train_squares(data, tmp_path / "cut", short, "resume=last")
    assert f"{tmp_path}/cut is finished: its model has made all 4 steps" in lines

    scores = logged(tmp_path / "whole", "val/miou/voc20")
    dispatch(["eval", f"model={tmp_path}/whole/model", "benchmark=voc20", f"benchmark.root={data}/voc",
              "benchmark.limit=3", f"output_dir={tmp_path}/eval", "num_workers=0", "overlays=0", "engineered=false",
              *PROTOCOL])  # fmt: skip
    result = json.loads((tmp_path / "eval" / "results.json").read_text())["voc20"]
    assert list(scores) == [1, 3] and scores[3] == pytest.approx(result["mIoU"], abs=1e-4)


@pytest.mark.parametrize("choice", ["single", "no_gate", "no_mask", "windows"])
def test_ablations_train(data, tmp_path, choice):
    train_squares(data, tmp_path / "run", f"mask_head={choice}", "trainer.epochs=1", "text_pooling=sentence")
    assert len(logged(tmp_path / "run")) == 2
    model = load_model(tmp_path / "run" / "model")
    assert model.text_pooling == "sentence"
    found = model.mask_head.settings.plain()
    assert found | load_choice("mask_head", choice) == found
    prediction = make_segmenter(model).predict(squares(90, 60, ("dog", "cat"))[0], ["cat", "dog"])
    assert prediction.mask.shape == (60, 90)


@pytest.mark.slow
def test_two_processes_train_as_one(data, tmp_path):
    """Some crops show one class and some two, so that the processes have different numbers of masks."""
    arguments = mask_arguments(data, tmp_path / "one", "masks.exclude_classes=[car,dog]", "masks.batch_size=6",
                               "optim.eps=1e-3", "trainer.epochs=3")  # fmt: skip
    with fixed_points():
        dispatch(["train-masks", *arguments])
    shared = [*arguments, f"output_dir={tmp_path}/two"]
    mp.start_processes(train_as_one_of_two, (free_port(), shared, tmp_path / "head"), nprocs=2, start_method="fork")
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert two == pytest.approx(one, rel=1e-4) and list(one) == [0, 1, 2]
    heads = [torch.load(tmp_path / f"head.{rank}", weights_only=True) for rank in range(2)]
    expected, found = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    for name, value in heads[0].items():
        assert torch.equal(value, heads[1][name]) and torch.equal(value, found[f"multires.{name}"]), name


# Measuring -----------------------------------------------------------------------------------------------------------


def test_seen_and_unseen_classes(trained, tmp_path, capsys):
    """A copy of the folder that says it was trained on less, so that both parts have something right."""
    model = tmp_path / "model"
    shutil.copytree(trained.model, model)
    config = json.loads((model / "config.json").read_text())
    seen = config["multires"]["trained"] = [name for name in SEEN if name != "cat"]
    config["multires"]["head"]["unseen_share"] = config["multires"]["head"]["learned_share"]
    (model / "config.json").write_text(json.dumps(config))
    (model / "SHA256SUMS").unlink()
    rule = "benchmark.background={kind: threshold, threshold: 0.9, with_masks: 0.15}"
    result = measure(trained, tmp_path / "eval", "train", "benchmark=voc21", rule, model=model)["voc21"]
    assert result["protocol"]["background"]["threshold"] == 0.15
    assert result["protocol"]["multires"] == config["multires"]["head"] and result["protocol"]["short_side"] == 128
    for found in (result, result["engineered"]):
        values = {name: value for name, value in found["per_class"].items() if value is not None}
        assert values.pop("background") > 0
        parts = [[value for name, value in values.items() if (name in seen) == known] for known in (True, False)]
        means = [sum(part) / len(part) for part in parts]
        apart = found["trained_with_masks"]
        assert [apart["seen"], apart["unseen"]] == pytest.approx(means)
        assert apart["harmonic"] == pytest.approx(2 * means[0] * means[1] / max(sum(means), 1e-9))
    apart = result["trained_with_masks"]
    assert apart["harmonic"] > 0
    said = " ".join(f"{key} {apart[key]:.2f}" for key in ("seen", "unseen", "harmonic"))
    assert said in " ".join(capsys.readouterr().out.split())
    assert f"{apart['harmonic']:.1f}" in (tmp_path / "eval" / "results.md").read_text()


def test_photos_held_out(trained, tmp_path):
    """The excluded class occurs among them and is measured as unseen; a model without a head has no such scores."""
    extra = ("benchmark=voc20", "engineered=false", "save_masks=true")
    result = measure(trained, tmp_path / "own", "held_out", *extra)["voc20"]
    assert sorted(path.stem for path in (tmp_path / "own" / "masks").iterdir()) == HELD_OUT and result["images"] == 2
    values = {name: value for name, value in result["per_class"].items() if value is not None}
    apart = result["trained_with_masks"]
    assert apart["unseen"] == values.pop("car")
    assert apart["seen"] == pytest.approx(sum(values.values()) / len(values)) and apart["seen"] > 0
    base = (*extra, "protocol.short_side=64")
    result = measure(trained, tmp_path / "base", "held_out", *base, model=trained.folder / "base")["voc20"]
    assert "trained_with_masks" not in result and "multires" not in result["protocol"]


def test_segment_writes_the_masks_of_eval(trained, measured, tmp_path):
    names = (trained.run / "train.txt").read_text().split()
    photos = [str(trained.folder / "voc" / "JPEGImages" / f"{name}.jpg") for name in names]
    dispatch(
        ["segment", *photos, f"model={trained.model}", f"classes={','.join(VOC)}", f"output_dir={tmp_path}", *PROTOCOL]
    )
    for name in names:
        assert (tmp_path / f"{name}_mask.png").read_bytes() == (measured[0] / "masks" / f"{name}.png").read_bytes()


# Segmenting ----------------------------------------------------------------------------------------------------------

GROUPS = [["hound", "dog"], ["cat"], ["unicorn"], ["sheep"], ["car"]]
WORDS = ("grass", "horse")
EXPONENTS = [0.2, 0.2, 0.9, 0.2, 0.9, 0.9, 0.2]  # by hand: little of the frozen model for what was trained
SIDES = [(64, 64), (90, 60), (150, 61), (40, 97), (60, 90), (33, 35), (64, 64)]  # width and height
WINDOWS = [(2, 2), (2, 3), (2, 5), (5, 2), (3, 2), (2, 2), (2, 2)]  # below and beside one another
PHOTOS = [squares(*sides, ("dog", "cat" if seed % 2 else "sheep"), seed)[0] for seed, sides in enumerate(SIDES)]


def make_segmenter(model: SimZSS, **options) -> Segmenter:
    options = {"protocol": Protocol(templates="photo"), "precision": "32-true", "device": "cpu"} | options
    return Segmenter(model, **options)


def resized(image: Image.Image, windows: tuple[int, int]) -> torch.Tensor:
    sides = [64 * number for number in windows]
    return v2.functional.resize(v2.functional.pil_to_tensor(image), sides, v2.InterpolationMode.BICUBIC)


def enlarged(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


@torch.no_grad()
def head_maps(model: SimZSS, pixels: torch.Tensor, classifier: Classifier) -> torch.Tensor:
    """(S, h, w) probabilities of the last layer."""
    levels = model.mask_head.encode(model.backbone, model.feature_norm.patches, pixels[None])
    exponents = torch.tensor(EXPONENTS[: len(classifier.weights)])
    return model.mask_head.class_maps(model.mask_head(levels)[-1], levels, classifier.similarity, exponents)[0].double()


@pytest.mark.parametrize("kind", ["none", "threshold", "words", "both"])
def test_labels_by_hand(loaded, kind):
    """Logarithms of the head's maps, bilinear to the photo's size, the largest wins. All photos at once."""
    rule = Background(kind=kind, threshold=0.3, words=WORDS)
    segmenter, found = make_segmenter(loaded, batch_size=40), set()
    classifier = segmenter.classifier(GROUPS, rule)
    predictions = segmenter.predict_batch(PHOTOS, classifier)
    for image, windows, prediction in zip(PHOTOS, WINDOWS, predictions, strict=True):
        maps = head_maps(loaded, resized(image, windows), classifier)
        chances = enlarged(maps.log(), image.size[::-1]).softmax(dim=0)
        classes, words = chances[: len(GROUPS)], chances[len(GROUPS) :]
        if rule.present:
            rivals = [*words, *([torch.full_like(chances[0], rule.threshold)] if rule.has_threshold else [])]
            classes = torch.cat([torch.stack(rivals).amax(dim=0, keepdim=True), classes])
        top = classes.topk(2, dim=0).values
        sure = top[0] - top[1] > 1e-5 * top[0]
        assert sure.double().mean() > 0.95
        assert torch.equal(prediction.mask[sure], classes.argmax(dim=0)[sure])
        found |= set(prediction.mask.unique().tolist())
        if rule.has_threshold:
            torch.testing.assert_close(prediction.logits.double().exp(), classes, rtol=1e-4, atol=1e-7)
    assert len(found) >= 2


def test_photos_do_not_depend_on_those_beside_them(loaded):
    """Several shapes at once, few windows at a time, one photo at a time."""
    alone = [make_segmenter(loaded).predict(image, GROUPS) for image in PHOTOS]
    for size in (1, 11, 40):
        together = make_segmenter(loaded, batch_size=size).predict_batch(PHOTOS, GROUPS)
        for found, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"protocol": Protocol(inference="slide")}, "inference=slide"),
        ({"protocol": Protocol(inference="stitch")}, "inference=stitch"),
        ({"aggregate": AggregateSettings(kind="patches")}, "aggregate=patches"),
    ],
    ids=str,
)
def test_what_a_head_does_not_support(loaded, options, says):
    refused(lambda: make_segmenter(loaded, **options), says, "masks")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model={folder}/run/model", "has a mask head already"),
        ("model={folder}/nothing", "{folder}/nothing does not exist"),
        ("model={folder}/voc", "{folder}/voc is no model folder"),
        ("trainer.compile=true", "trainer.compile"),
        ("trainer.micro_batch=2", "trainer.micro_batch"),
        ("masks.root=/nowhere", "masks.root=/nowhere"),
        ("masks.benchmark=imagenet", "imagenet"),
        ("mask_head.depths=[0,99]", "depth 99"),
        ("mask_head.window=50", "50"),
        ("validation.benchmark=voc20", "validation.root"),
        ("resume={folder}/run/checkpoints/last.ckpt mask_head.layers=2", "does not fit this model"),
        ("resume={folder}/run/checkpoints/last.ckpt mask_head.width=16", "does not fit this model"),
    ],
)
def test_training_refuses(trained, tmp_path, override, says):
    folder = trained.folder
    overrides = override.format(folder=folder).split()
    refused(lambda: train_squares(folder, tmp_path / "run", *MAIN, *overrides), says.format(folder=folder))
    assert not (tmp_path / "run" / "metrics.csv").exists()
