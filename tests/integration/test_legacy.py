"""Files that version 0.1 wrote (tests/legacy, made by its make.sh) load, go on, and give the results they gave."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simzss.cli import dispatch
from tests.support.program import ROOT

LEGACY = ROOT / "tests" / "legacy"
EXPECTED = json.loads((LEGACY / "expected.json").read_text(encoding="utf-8"))
BACKBONE = ["backbone=dino_vits16", "backbone.name=tiny_vit", "backbone.timm_name=test_vit.r160_in1k",
            "backbone.image_size=64", "backbone.weights=backbone"]  # fmt: skip
TRAINING = ["text=pretrained", "text.weights=text", "text.trainable_layers=1", "text.context_length=32", "data=cached",
            "data.features=cache", "data.batch_size=4", "data.num_workers=0", "optim.lr=3e-2",
            "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true",
            "trainer.progress_bar=false"]  # fmt: skip
CLASSES = [["sky"], ["green grass", "lawn"], ["ball"]]


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """A copy of the files, as the current folder; photos have the times that their captions were read with."""
    folder = tmp_path / "legacy"
    shutil.copytree(LEGACY, folder)
    for photo in (folder / "source" / "photos").iterdir():
        os.utime(photo, (1577836800, 1577836800))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def arrays():
    with np.load(LEGACY / "expected.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.mark.parametrize("kind", ["run", "masks_run"])
def test_models_segment_as_they_did(kind, arrays, copy):
    import simzss

    model = simzss.load_model(copy / kind / "model", backbone_weights=str(copy / "backbone"))
    segmenter = simzss.Segmenter(model, precision="32-true", device=torch.device("cpu"))
    prediction = segmenter.predict(copy / "scenes" / "images" / "val" / "meadow.jpg", CLASSES)
    torch.testing.assert_close(prediction.logits[:, ::4, ::4], arrays[f"{kind}/logits"], atol=1e-4, rtol=0)
    arguments = [f"model={kind}/model", "backbone.weights=backbone", "precision=32-true", "output_dir=out"]
    dispatch(["segment", "scenes/images/val/meadow.jpg", *arguments, "classes=sky,green grass/lawn,ball"])
    masks = [
        np.asarray(Image.open(path))
        for path in (copy / "out" / "meadow_mask.png", copy / "segment" / kind / "meadow_mask.png")
    ]
    certain = arrays[f"{kind}/certain"].numpy()
    assert (masks[0][certain] == masks[1][certain]).all() and certain.mean() > 0.98


@pytest.mark.parametrize(("now", "then"), [("sentence", "sentence"), ("tokens", "concept"), ("both", "both")])
def test_text_vectors_are_what_they_were(now, then, arrays, copy):
    import simzss
    from simzss.segmentation.prompts import embed_names, templates

    model = simzss.load_model(copy / "run" / "model", backbone_weights=str(copy / "backbone"))
    vectors = embed_names(model, ["sky", "green grass", "lawn", "ball"], templates("imagenet80"), now)
    torch.testing.assert_close(vectors, arrays[f"run/names/{then}"], atol=1e-5, rtol=0)


def test_a_cache_opens_and_is_finished(arrays, copy, capsys, caplog):
    from simzss.features.store import FeatureStore

    rows = FeatureStore.open(copy / "cache").rows(torch.tensor([0]), torch.tensor([0])).features(torch.float32)
    assert torch.equal(rows.cls, arrays["cache/cls"]) and torch.equal(rows.patches, arrays["cache/patches"])


def test_training_goes_on_from_an_old_checkpoint(copy):
    dispatch(["train", *BACKBONE, *TRAINING, "trainer.epochs=5", "output_dir=run", "resume=last"])
    with (copy / "run" / "metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    losses = {int(float(row["step"])): float(row["train/loss"]) for row in rows}
    expected = {int(row["step"]): float(row["train/loss"]) for row in EXPECTED["resumed"] if row.get("train/loss")}
    assert losses.keys() == expected.keys()
    assert losses == pytest.approx(expected, rel=1e-3)


def test_a_cache_and_shards_are_finished_already(copy, caplog, capsys):
    caplog.set_level("INFO")
    before = {path: path.read_bytes() for folder in ("cache", "shards") for path in (copy / folder).glob("*[a-z0-9].*")}
    cache = ["data.shards=shards/*.tar", "data.num_workers=0", "output=cache", "accelerator=cpu", "precision=32-true"]
    dispatch(["cache", *BACKBONE, *cache])
    assert "2 of 2 shards are finished already" in caplog.text
    captions = ["images=source/photos", "captions=source/captions.json", "output=shards", "samples_per_shard=2"]
    dispatch(["prep", "captions", *captions, "executor=serial"])
    assert "2 of 2 tasks are finished already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_measuring_gives_the_old_numbers(copy):
    arguments = ["model=run/model", "backbone.weights=backbone", "benchmark=scenes", "benchmark.root=scenes"]
    dispatch(
        [
            "eval",
            *arguments,
            "precision=32-true",
            "overlays=0",
            "num_workers=0",
            "compare_untrained=true",
            "output_dir=now",
        ]
    )
    now, then = (json.loads((copy / folder / "results.json").read_text()) for folder in ("now", "eval"))
    assert now.keys() == then.keys()
    for name, result in then.items():
        assert now[name].keys() == result.keys()
        assert now[name]["mIoU"] == pytest.approx(result["mIoU"], abs=0.1)
        assert now[name]["protocol"] == result["protocol"]
