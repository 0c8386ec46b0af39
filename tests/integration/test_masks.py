"""Train a head with masks on a tiny model, measure it, segment with it."""

import csv
import json
import logging
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2

from simzss.cli import dispatch
from simzss.config import CONF_DIR, compose, root_of
from simzss.models import checkpoint as folder_module
from simzss.models.checkpoint import load_model, save_model
from simzss.models.mask_head.head import MultiResHead, Round
from simzss.models.simzss import SimZSS
from simzss.segmentation.background import Background
from simzss.segmentation.inference.aggregate import Correlation
from simzss.segmentation.protocol import WHOLE_336
from simzss.segmentation.refine.pamr import pamr
from simzss.segmentation.refine.refinement import PixelRefinement
from simzss.segmentation.segmenter import Segmenter
from simzss.training.mask_module import MaskModule
from simzss.training.mask_run import train_masks
from tests.support.mask_runs import (
    HELD_OUT,
    VOC,
    fixed_points,
    mask_arguments,
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
MAIN = ("masks.hidden=[car]", f"trainer.epochs={EPOCHS}", "trainer.checkpoint_every_n_epochs=10", "optim.warmup=0.1",
        "optim.betas=[0.9,0.98]", "mask_loss.class_weight=4.0")  # fmt: skip
SHORT = ("trainer.epochs=2",)
WHOLE = replace(WHOLE_336, templates="photo")
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
    """A run that hides one class."""
    modules: list[MaskModule] = []

    def note(module: MaskModule) -> None:
        modules.append(module)
        logging.getLogger("simzss").info("training begins")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskModule, "on_train_start", note)
        lines = train_squares(data, data / "run", *MAIN)
    return Trained(data, lines, modules[0].cpu().eval())


@pytest.fixture(scope="module")
def loaded(trained) -> SimZSS:
    return load_model(trained.model)[0]


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


def metrics(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


# The run -------------------------------------------------------------------------------------------------------------


def test_run_folder(trained):
    run = trained.run
    for name in ("checkpoints/last.ckpt", "model/model.safetensors", "tensorboard"):
        assert (run / name).exists(), name
    expected = compose("train_masks", mask_arguments(trained.folder, run, *MAIN))
    assert OmegaConf.load(run / "config.yaml") == expected
    named = {name: (run / f"{name}.txt").read_text().splitlines() for name in ("train", "held_out")}
    assert named == {"train": [f"photo{i}" for i in range(8) if f"photo{i}" not in HELD_OUT], "held_out": HELD_OUT}
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(STEPS))
    for row in rows:
        parts = [row[f"train/loss_{name}"] for name in ("class", "bce", "dice")]
        assert row["train/loss"] == pytest.approx(sum(parts), rel=1e-5) and min(parts) > 0
        assert row["train/empty_crops"] == 0
    warm = [1e-2 * (step + 1) / 4 for step in range(4)]
    cosine = [5e-3 * (1 + np.cos(np.pi * step / (STEPS - 4))) for step in range(STEPS - 4)]
    assert [row["lr"] for row in rows] == pytest.approx(warm + cosine, rel=1e-5)


def test_model_folder_names_what_was_trained(trained):
    config = json.loads((trained.model / "config.json").read_text())
    assert config["multires"]["trained"] == SEEN
    assert config["multires"]["head"] == OmegaConf.to_container(OmegaConf.load(trained.run / "config.yaml").multires)
    assert config["settings"] == {"readout": "concept", "head_steps": STEPS}
    base = json.loads((trained.folder / "base" / "config.json").read_text())
    assert {key for key in base if config[key] != base[key]} == {"settings"}
    before, after = (load_file(path / "model.safetensors") for path in (trained.folder / "base", trained.model))
    assert {name for name in after if not name.startswith("multires.")} == set(before)
    assert not [name for name, value in before.items() if not torch.equal(value, after[name])]


def test_cost_is_said_before_training(trained):
    """Parameters, memory, time of a step: one line."""
    (line,) = [line for line in trained.lines if "trainable parameters" in line]
    found = re.fullmatch(
        r"trainable parameters: (\d+\.\d\d) M, frozen: (\d+\.\d) M; memory: (\d+\.\d\d) GiB, "
        r"of which (\d+\.\d\d) for a step; a step of 3 crops: (\d+\.\d\d) s",
        line,
    )
    assert found, line
    sizes = {True: 0, False: 0}
    for name, parameter in trained.module.model.named_parameters():
        sizes[name.startswith("multires.")] += parameter.numel()
    learning, frozen, memory, live, _ = map(float, found.groups())
    assert learning == pytest.approx(sizes[True] / 1e6, abs=0.0051)
    assert frozen == pytest.approx(sizes[False] / 1e6, abs=0.051)
    assert memory == pytest.approx(live + 4 * (sizes[False] + 3 * sizes[True]) / 2**30, abs=0.011)
    assert trained.lines.index("masks: 6 photos of voc21, 2 held out, 19 classes") < trained.lines.index(line)
    assert trained.lines.index(line) < trained.lines.index("training begins")


def test_loss_falls(trained):
    losses = list(logged(trained.run).values())
    assert sum(losses[-4:]) < 0.4 * sum(losses[:4])


def test_words_are_those_that_segment(trained, loaded):
    segmenter = Segmenter(loaded, WHOLE, precision="32-true", device=torch.device("cpu")).set_classes(SEEN)
    torch.testing.assert_close(trained.module.words, segmenter.classifier.weights, rtol=0, atol=1e-6)


def test_few_photos_are_learned_by_heart(trained, measured, tmp_path):
    """Against the same head before its first step."""
    train_squares(trained.folder, tmp_path / "run", *MAIN, "optim.lr=0.0", "trainer.max_steps=1")
    (first,) = logged(tmp_path / "run").values()
    assert first == logged(trained.run)[0]
    extra = ("benchmark=voc20", "engineered=false")
    before = measure(trained, tmp_path / "eval", "train", *extra, model=tmp_path / "run" / "model")["voc20"]
    after = measured[1]
    assert after["trained_with_masks"]["seen"] > max(35, 3 * before["trained_with_masks"]["seen"])
    assert after["aAcc"] > 30 + before["aAcc"]


def test_resumed_equals_uninterrupted(data, tmp_path, monkeypatch):
    """The uninterrupted run is validated too, which changes nothing."""
    validation = ("validation.benchmark=voc20", f"validation.root={data}/voc", "validation.limit=3")
    train_squares(data, tmp_path / "whole", *SHORT, *validation)
    begin = MaskModule.on_train_epoch_start

    def crash(module: MaskModule) -> None:
        if module.current_epoch == 1:
            raise RuntimeError("power cut")
        begin(module)

    with monkeypatch.context() as patch:
        patch.setattr(MaskModule, "on_train_epoch_start", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train_squares(data, tmp_path / "cut", *SHORT)
    assert list(logged(tmp_path / "cut")) == [0, 1]
    refused(lambda: train_squares(data, tmp_path / "cut", *SHORT), "holds a run already")
    train_squares(data, tmp_path / "cut", *SHORT, "resume=last")
    curve = logged(tmp_path / "whole")
    assert logged(tmp_path / "cut") == curve and list(curve) == [0, 1, 2, 3]
    expected, found = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert expected.keys() == found.keys()
    assert not [name for name, value in expected.items() if not torch.equal(value, found[name])]

    scores = logged(tmp_path / "whole", "val/miou/voc20")
    dispatch(["eval", f"model={tmp_path}/whole/model", "benchmark=voc20", f"benchmark.root={data}/voc",
              "benchmark.limit=3", f"output_dir={tmp_path}/eval", "num_workers=0", "overlays=0", "engineered=false",
              *PROTOCOL])  # fmt: skip
    result = json.loads((tmp_path / "eval" / "results.json").read_text())["voc20"]
    assert list(scores) == [1, 3] and scores[3] == pytest.approx(result["mIoU"], abs=1e-4)


def test_another_seed_begins_elsewhere(trained, tmp_path):
    train_squares(trained.folder, tmp_path / "run", *MAIN, "trainer.max_steps=1", "seed=1")
    assert logged(tmp_path / "run")[0] != logged(trained.run)[0]


@pytest.mark.parametrize("change", ["multires.layers=2", "multires.width=16"])
def test_checkpoint_of_another_head_is_refused(trained, tmp_path, change):
    resume = (f"resume={trained.run}/checkpoints/last.ckpt", f"trainer.epochs={EPOCHS + 1}")
    refused(lambda: train_squares(trained.folder, tmp_path / "run", *MAIN, *resume, change), "does not fit this model")


@pytest.mark.parametrize("choice", ["single", "no_gate", "no_mask", "windows"])
def test_ablations_train(data, tmp_path, choice):
    chosen = (f"multires={choice}", "trainer.epochs=1", "readout=sentence")
    train_squares(data, tmp_path / "run", *chosen)
    assert len(logged(tmp_path / "run")) == 2
    model, settings = load_model(tmp_path / "run" / "model")
    config = OmegaConf.load(CONF_DIR / "multires" / f"{choice}.yaml")
    assert settings["readout"] == "sentence"
    for key in ("views", "gate", "restore", "masked"):
        assert getattr(model.multires.config, key) == config[key]
    segmenter = Segmenter(model, WHOLE, precision="32-true", device=torch.device("cpu")).set_classes(["cat", "dog"])
    assert segmenter.predict(photo(90, 60)).mask.shape == (60, 90)


def test_two_processes_train_as_one(data, tmp_path):
    """Some crops show one class and some two, so that the processes have different numbers of masks."""
    arguments = mask_arguments(
        data, tmp_path / "one", "masks.hidden=[car,dog]", "masks.batch_size=6", "optim.eps=1e-3", "trainer.epochs=3"
    )
    with fixed_points():
        train_masks(compose("train_masks", arguments))
    shared = [*arguments, f"output_dir={tmp_path}/two"]
    mp.start_processes(
        train_as_one_of_two, (free_port(), shared, tmp_path / "head"), nprocs=2, start_method="forkserver"
    )
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert two == pytest.approx(one, rel=1e-4) and list(one) == [0, 1, 2]
    heads = [torch.load(tmp_path / f"head.{rank}", weights_only=True) for rank in range(2)]
    assert not [name for name, value in heads[0].items() if not torch.equal(value, heads[1][name])]
    expected, found = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    for name, value in heads[0].items():
        assert torch.equal(found[f"multires.{name}"], value), name


# Measuring -----------------------------------------------------------------------------------------------------------


def test_seen_and_unseen_classes(trained, tmp_path, capsys):
    """A copy of the folder that says it was trained on less, so that both parts have something right."""
    model = tmp_path / "model"
    shutil.copytree(trained.model, model)
    config = json.loads((model / "config.json").read_text())
    seen = [name for name in SEEN if name != "cat"]
    config["multires"]["trained"] = seen
    config["multires"]["head"]["unseen_share"] = config["multires"]["head"]["learned_share"]
    (model / "config.json").write_text(json.dumps(config))
    rule = "benchmark.background={kind: threshold, threshold: 0.9, with_masks: 0.15}"
    results = measure(trained, tmp_path / "eval", "train", "benchmark=voc21", rule, model=model)
    result = results["voc21"]
    assert result["protocol"]["background"]["threshold"] == 0.15
    for found in (result, result["engineered"]):
        values = {name: value for name, value in found["per_class"].items() if value is not None}
        background = values.pop("background")
        assert background > 0
        parts = [[value for name, value in values.items() if (name in seen) == known] for known in (True, False)]
        means = [sum(part) / len(part) for part in parts]
        apart = found["trained_with_masks"]
        assert [apart["seen"], apart["unseen"]] == pytest.approx(means)
        assert apart["harmonic"] == pytest.approx(2 * means[0] * means[1] / max(sum(means), 1e-9))
    assert result["trained_with_masks"]["harmonic"] > 0
    said = " ".join(f"{key} {result['trained_with_masks'][key]:.2f}" for key in ("seen", "unseen", "harmonic"))
    assert said in " ".join(capsys.readouterr().out.split())
    assert f"{result['trained_with_masks']['harmonic']:.1f}" in (tmp_path / "eval" / "results.md").read_text()
    assert result["protocol"]["multires"] == config["multires"]["head"] and result["protocol"]["short_side"] == 128


def test_photos_held_out(trained, tmp_path):
    """The hidden class occurs among them and is measured as one that was not learned."""
    result = measure(trained, tmp_path, "held_out", "benchmark=voc20", "engineered=false", "save_masks=true")["voc20"]
    assert sorted(path.stem for path in (tmp_path / "masks").iterdir()) == HELD_OUT and result["images"] == 2
    values = {name: value for name, value in result["per_class"].items() if value is not None}
    apart = result["trained_with_masks"]
    assert apart["unseen"] == values.pop("car")
    assert apart["seen"] == pytest.approx(sum(values.values()) / len(values)) and apart["seen"] > 0


def test_model_without_a_head_has_no_such_scores(trained, tmp_path):
    extra = ("benchmark=voc20", "engineered=false", "protocol.short_side=64")
    result = measure(trained, tmp_path, "held_out", *extra, model=trained.folder / "base")["voc20"]
    assert "trained_with_masks" not in result and "multires" not in result["protocol"]


# Segmenting ----------------------------------------------------------------------------------------------------------


def test_segment_writes_the_masks_of_eval(trained, measured, tmp_path, capsys):
    names = (trained.run / "train.txt").read_text().split()
    photos = [str(trained.folder / "voc" / "JPEGImages" / f"{name}.jpg") for name in names]
    dispatch(
        ["segment", *photos, f"model={trained.model}", f"classes={','.join(VOC)}", f"output_dir={tmp_path}", *PROTOCOL]
    )
    assert len(capsys.readouterr().out.split()) == 2 * len(names)
    for name in names:
        assert (tmp_path / f"{name}_mask.png").read_bytes() == (measured[0] / "masks" / f"{name}.png").read_bytes()


GROUPS = [["hound", "dog"], ["cat"], ["unicorn"], ["sheep"], ["car"]]
WORDS = ("grass", "horse")
SHARES = [0.2, 0.2, 0.9, 0.2, 0.9, 0.9, 0.2]  # of the frozen model, by hand: little for what was trained
SIDES = [(64, 64), (90, 60), (150, 61), (40, 97), (60, 90), (33, 35), (64, 64)]  # width and height
WINDOWS = [(2, 2), (2, 3), (2, 5), (5, 2), (3, 2), (2, 2), (2, 2)]  # below and beside one another


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Squares of the colours that were trained on, on noise."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
    for left, colour in ((0, (200, 40, 40)), (width // 2, (40, 200, 40) if seed % 2 else (220, 220, 220))):
        pixels[height // 4 : height * 3 // 4, left + width // 16 : left + width * 7 // 16] = colour
    return Image.fromarray(pixels)


PHOTOS = [photo(*sides, seed) for seed, sides in enumerate(SIDES)]


def make_segmenter(model: SimZSS, background: Background | None = None, **options) -> Segmenter:
    options = {"protocol": WHOLE, "precision": "32-true", "device": torch.device("cpu")} | options
    return Segmenter(model, **options).set_classes(GROUPS, background)


def resized(image: Image.Image, windows: tuple[int, int]) -> torch.Tensor:
    sides = [64 * number for number in windows]
    return v2.functional.resize(v2.functional.pil_to_tensor(image), sides, v2.InterpolationMode.BICUBIC)


def maps_by_hand(model: SimZSS, pixels: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """(S, h, w) float64 probabilities by the formulas, from what the queries say after the last round."""
    head = model.multires
    with torch.no_grad():
        levels = head.look(model.backbone, model.feature_norm.patches, pixels[None])
        said = head(levels)[-1]
    vectors, masks = said.vectors[0].double(), said.masks[0].double()
    words, scale = words.double(), min(float(head.logit_scale.detach().double().exp()), 100.0)
    none = head.no_object.detach().double()
    total = torch.zeros(len(words), *masks.shape[1:], dtype=torch.float64)
    for vector, mask in zip(vectors, masks, strict=True):
        mine, nothing = (scale * words @ vector).exp(), (scale * vector @ none / none.norm()).exp()
        total += (mine / (mine.sum() + nothing))[:, None, None] / (1 + (-mask).exp())
    seen = [torch.einsum("sd,dhw->shw", words, level.dense[0].double()) for level in levels]
    cosines = sum(enlarged(part, masks.shape[1:]) for part in seen) / len(seen)
    shares = torch.tensor(SHARES[: len(words)], dtype=torch.float64)[:, None, None]
    ours, theirs = (total + 1e-3) / (total.sum(dim=0) + 1e-3 * len(words)), (scale * cosines).softmax(dim=0)
    mixed = ours ** (1 - shares) * theirs**shares
    present = total.sum(dim=0).clamp(1e-3, 1)
    return present * mixed / mixed.sum(dim=0) + (1 - present) / len(words)


def enlarged(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


BACKGROUNDS = [
    Background(),
    Background("threshold", 0.35),
    Background("words", words=WORDS),
    Background("both", 0.3, WORDS),
]


@pytest.mark.parametrize("rule", BACKGROUNDS, ids=lambda rule: rule.kind)
def test_labels_by_hand(loaded, rule):
    """Logarithms of the head's maps, bilinear to the photo's size, the largest wins. All photos at once."""
    segmenter = make_segmenter(loaded, rule, batch_size=40)
    predictions = segmenter.predict_batch(PHOTOS)
    found = set()
    for image, windows, prediction in zip(PHOTOS, WINDOWS, predictions, strict=True):
        maps = maps_by_hand(loaded, resized(image, windows), segmenter.classifier.weights)
        scores = enlarged(maps.log(), image.size[::-1])
        chances = scores.softmax(dim=0)
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
    alone = [make_segmenter(loaded).predict(image) for image in PHOTOS]
    for size in (1, 11, 40):
        for found, expected in zip(make_segmenter(loaded, batch_size=size).predict_batch(PHOTOS), alone, strict=True):
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_what_no_mask_claims_is_background(loaded, monkeypatch):
    """The right half is a cat; nobody claims the left half, where all classes are as likely."""
    segmenter = make_segmenter(loaded, Background("threshold", 0.21))
    none = F.normalize(loaded.multires.no_object.detach(), dim=0)
    masks = torch.full((1, 2, 8, 8), -30.0)
    masks[:, 0, :, 4:] = 30
    vectors = torch.stack([segmenter.classifier.weights[1], none])[None]
    monkeypatch.setattr(MultiResHead, "forward", lambda self, levels: [Round(vectors, masks, vectors)])
    monkeypatch.setattr(MultiResHead, "scale", torch.tensor(100.0))
    prediction = segmenter.predict(photo(64, 64))
    assert (prediction.mask[:, :28] == 0).all() and (prediction.mask[:, 36:] == 2).all()
    chances = prediction.logits.exp()
    torch.testing.assert_close(chances[1:].sum(dim=0), torch.ones(64, 64))
    torch.testing.assert_close(chances[:, :, :28], torch.tensor([0.21, *[0.2] * 5])[:, None, None].expand(-1, 64, 28),
                               rtol=0, atol=1e-3)  # fmt: skip
    certain = make_segmenter(loaded, Background("threshold", 0.19)).predict(photo(64, 64))
    assert (certain.mask > 0).all()


def test_pixels_refine_what_a_head_gives(loaded):
    refinement = PixelRefinement(iterations=3, dilations=(1, 4))
    segmenter = make_segmenter(loaded, refinement=refinement)
    changed = 0
    for image, windows in zip(PHOTOS[:3], WINDOWS, strict=False):
        pixels = resized(image, windows)
        maps = maps_by_hand(loaded, pixels, segmenter.classifier.weights)
        chances = enlarged(maps.log(), pixels.shape[1:]).softmax(dim=0).float()
        refined = enlarged(pamr(pixels.float(), chances, 3, (1, 4)), image.size[::-1])
        top = refined.topk(2, dim=0).values
        sure = top[0] - top[1] > 1e-5
        prediction = segmenter.predict(image)
        torch.testing.assert_close(prediction.logits.exp(), refined, rtol=1e-3, atol=1e-5)
        mask = prediction.mask
        assert sure.float().mean() > 0.5 and torch.equal(mask[sure], refined.argmax(dim=0)[sure])
        changed += int((mask != make_segmenter(loaded).predict(image).mask).sum())
    assert changed > 0


def test_written_and_read_it_is_the_same_model(trained, loaded, tmp_path):
    """What was trained, what was read, and what that is when written and read again."""
    keys = ("name", "timm_name", "features", "project", "image_size")
    backbone = {key: getattr(loaded.backbone, key) for key in keys} | {"weights": None}
    save_model(loaded, tmp_path / "model", backbone, {"readout": "concept", "head_steps": STEPS})
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (trained.model / name).read_bytes()
    expected = make_segmenter(trained.module.model).predict_batch(PHOTOS[:2])
    for found, prediction in zip(make_segmenter(loaded).predict_batch(PHOTOS[:2]), expected, strict=True):
        assert torch.equal(found.logits, prediction.logits)


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", ["slide", "splice"])
def test_windows_of_the_protocol_are_refused(trained, loaded, inference):
    refused(lambda: make_segmenter(loaded, protocol=replace(WHOLE, inference=inference)), f"inference={inference}")


def test_correlations_are_refused(loaded):
    refused(lambda: make_segmenter(loaded, correlation=Correlation(kind="patches")), "correlate=patches", "masks")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("inference=slide", "inference=slide"),
        ("correlate=patches", "correlate=patches"),
        ("backbone.features=value", "features=self"),
        ("proxy=sam", "features=self"),
        ("proxy=dino_vitb16", "features=self"),
    ],
)
def test_segment_refuses(trained, tmp_path, override, says):
    image = trained.folder / "voc" / "JPEGImages" / "photo0.jpg"
    arguments = ["segment", str(image), f"model={trained.model}", "classes=cat", f"output_dir={tmp_path}", override]
    refused(lambda: dispatch([*arguments, *PROTOCOL]), says, "masks")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model={folder}/run/model", "has a head already"),
        ("model={folder}/nothing", "{folder}/nothing does not exist"),
        ("model={folder}/voc", "{folder}/voc is no model folder"),
        ("trainer.compile=true", "trainer.compile=True"),
        ("trainer.micro_batch=2", "trainer.micro_batch=2"),
        ("masks.root=/nowhere", "masks.root=/nowhere"),
        ("masks.benchmark=imagenet", "imagenet"),
        ("masks.benchmark=retrieval", "masks.benchmark=retrieval is no segmentation set"),
        ("multires.depths=[0,99]", "depth 99"),
        ("multires.window=50", "50"),
        ("experiment=mrovsex_cpu", "experiment=mrovsex_cpu"),
        ("validation.benchmark=voc20", "validation.root"),
    ],
)
def test_training_refuses(trained, tmp_path, override, says):
    arguments = mask_arguments(trained.folder, tmp_path / "run", override.format(folder=trained.folder))
    if override.startswith("experiment="):
        arguments = arguments[1:]
    refused(lambda: dispatch(["train", *arguments]), says.format(folder=trained.folder))
    assert not (tmp_path / "run" / "metrics.csv").exists()


DAMAGES = [
    ({}, "head"),
    ("a head", "config.json"),
    ([], "config.json"),
    ({"head": {"window": 64}, "trained": []}, "config.json"),
    ({"head": {"width": 16}}, "multires."),
    ({"head": {"depths": 3}}, "config.json"),
    ({"head": {"views": "all"}}, "multires.views=all"),
    ({"head": {"nonsense": 1}}, "nonsense"),
    ({"trained": 5}, "config.json"),
    (None, "does not fit its config.json: multires."),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES, ids=lambda value: str(value)[:30])
def test_damaged_config(trained, loaded, tmp_path, monkeypatch, damage, says):
    monkeypatch.setattr(folder_module, "rebuild_text_encoder", lambda *_: loaded.text_encoder)  # which takes time
    shutil.copytree(trained.model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    if isinstance(damage, dict) and damage and "window" not in damage.get("head", {}):
        whole = config["multires"]
        damage = whole | damage | {"head": whole["head"] | damage.get("head", {})}
    config["multires"] = damage
    path.write_text(json.dumps(config))
    refused(lambda: load_model(tmp_path / "model"), str(tmp_path / "model"), says)


# The command line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "overrides", "root"),
    [
        ("train", [], "train"),
        ("train", ["experiment=demo"], "train"),
        ("train", ["experiment=null"], "train"),
        ("train", ["experiment=nothing"], "train"),
        ("train", ["experiment=mrovseg"], "train_masks"),
        ("train", ["seed=1", "experiment=mrovseg_cpu", "model=x"], "train_masks"),
        ("train", ["output_dir=experiment=mrovseg"], "train"),
        ("train", ["masks.root=voc", "optim.lr=0.1"], "train_masks"),
        ("train", ["multires=single"], "train_masks"),
        ("train", ["data.shards=x", "optim.lr=0.1"], "train"),
        ("eval", ["experiment=trident"], "eval"),
        ("eval", ["experiment=mrovseg"], "eval"),
    ],
)
def test_experiment_decides_what_is_trained(verb, overrides, root):
    assert root_of(verb, overrides) == root


def test_config_of_the_experiment(data, tmp_path, capsys):
    dispatch(["config", "show", "train", "experiment=mrovseg_cpu"])
    shown = OmegaConf.create(capsys.readouterr().out)
    assert shown == compose("train_masks", ["experiment=mrovseg_cpu"])
    assert shown.multires.queries == 32 and shown.masks.scales == [0.75, 1.5] and "text" not in shown
    refused(lambda: dispatch(["config", "validate", "train", "experiment=mrovseg_cpu"]), "model=…", "masks.root=…")
    arguments = mask_arguments(data, tmp_path / "run")
    dispatch(["config", "validate", "train", *arguments])
    assert capsys.readouterr().out == "valid\n"
    refused(lambda: dispatch(["config", "validate", "train", *arguments, "multires.upsample=3"]), "multires.upsample=3")
    refused(lambda: dispatch(["config", "validate", "train", *arguments, "text.layers=3"]), "unknown key 'text.layers'")
    assert not (tmp_path / "run").exists()


def test_help_of_the_experiment(capsys):
    dispatch(["train", "experiment=mrovseg_cpu", "--help"])
    said = capsys.readouterr().out
    assert "Train a head with masks" in said
    assert "multires: mrovseg, no_gate, no_mask, single, windows" in said
    assert re.search(r"^experiment: .*mrovseg, mrovseg_cpu", said, re.MULTILINE) and "\ntext:" not in said
    dispatch(["train", "--help"])
    assert "\nmultires:" not in capsys.readouterr().out


def test_experiment_of_masks_misspelt():
    """Those of both kinds of training are offered."""
    refused(lambda: dispatch(["train", "experiment=mrovsegg"]), "experiment=mrovsegg is unknown; did you mean mrovseg")
