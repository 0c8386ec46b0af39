"""The documented commands on real photos with real weights: SIMZSS_DATA and SIMZSS_WEIGHTS say where they are.

A short run on some hundred photos: it shows that every part works on real files, not how good the full recipe is.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not {"SIMZSS_DATA", "SIMZSS_WEIGHTS"} <= os.environ.keys(), reason="SIMZSS_DATA and SIMZSS_WEIGHTS are not set"
    ),
]
PHOTOS = 900
CONF = Path(__file__).resolve().parents[2] / "conf"
ROOTS = {"voc20": "VOCdevkit", "voc21": "VOCdevkit", "ade20k": "ADEChallengeData2016", "coco_object": "coco_object",
         "coco_things": "coco_object"}  # fmt: skip


def run(*arguments):
    """Run a program of the project as a user would."""
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def data():
    return Path(os.environ["SIMZSS_DATA"])


@pytest.fixture(scope="module")
def weights():
    return Path(os.environ["SIMZSS_WEIGHTS"])


@pytest.fixture(scope="module")
def shards(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    content = json.loads((data / "flickr8k" / "captions_train.json").read_text())
    content["images"] = content["images"][:PHOTOS]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [record for record in content["annotations"] if record["image_id"] in kept]
    (folder / "captions.json").write_text(json.dumps(content))
    images = data / "flickr8k" / "images"
    run("simzss", "prep", "captions", f"images={images}", f"captions={folder}/captions.json", f"output={folder}/shards")
    coverage = run("simzss", "prep", "bank", f"captions={folder}/shards", f"output={folder}/coverage.json")
    assert "with a concept of the bank" in coverage
    assert json.loads((folder / "coverage.json").read_text())["captions_with_concept_percent"] > 95
    return folder / "shards"


@pytest.fixture(scope="module")
def clip_model(shards, weights, tmp_path_factory):
    output = tmp_path_factory.mktemp("clip") / "run"
    run("simzss", "train", "experiment=real_cpu", f"data.shards={shards}/*.tar", f"backbone.weights={weights}",
        f"text.weights={weights}/minilm", f"output_dir={output}", "data.batch_size=128", "trainer.epochs=10",
        "trainer.progress_bar=false")  # fmt: skip
    return output / "model"


@pytest.mark.parametrize(
    ("benchmark", "limit", "least"),
    [("voc20", 40, 30), ("voc21", 20, 10), ("ade20k", 20, 2), ("coco_object", 20, 4), ("coco_things", 20, 6)],
)
def test_evaluation(benchmark, limit, least, clip_model, data, tmp_path):
    run("simzss", "eval", f"model={clip_model}", f"benchmark={benchmark}", f"benchmark.root={data / ROOTS[benchmark]}",
        f"benchmark.limit={limit}", f"output_dir={tmp_path}", "save_masks=true", "overlays=2",
        "protocol.templates=photo")  # fmt: skip
    result = json.loads((tmp_path / "results.json").read_text())[benchmark]
    assert result["images"] == limit == len(list((tmp_path / "masks").glob("*.png")))
    assert result["mIoU"] > least
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_filters_on_real_photos_account_for_every_image(data, tmp_path):
    """COCO photos against the photos of the real evaluation sets, with the filters for a crawl."""
    source = data / "coco_captions_mini"
    listed = json.loads((source / "captions_train.json").read_text())["images"]
    command = ("simzss", "prep", "captions", f"images={source}/images", f"captions={source}/captions_train.json",
               f"output={tmp_path}/shards", "filters=web", f"filters.evaluation_root={data}")  # fmt: skip
    run(*command)
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert index["complete"] and index["samples"] > 0.9 * len(listed)
    assert index["samples"] + sum(index["left_out"]["images"].values()) == len(listed)
    before = (tmp_path / "shards" / "index.json").read_bytes()
    run(*command)
    assert (tmp_path / "shards" / "index.json").read_bytes() == before


def test_segment_with_own_words(clip_model, data, tmp_path):
    photos = sorted((data / "VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))[:3]
    run("simzss", "segment", *photos, f"model={clip_model}", "classes=cat/kitten,dog,person,green grass,blue sky",
        f"output_dir={tmp_path}")  # fmt: skip
    for photo in photos:
        mask = np.asarray(Image.open(tmp_path / f"{photo.stem}_mask.png"))
        assert mask.shape == Image.open(photo).size[::-1]
        assert mask.max() < 5
        assert (tmp_path / f"{photo.stem}_overlay.png").is_file()


@pytest.mark.parametrize(
    ("benchmark", "least", "more"),
    [
        ("voc20", 50, ["inference=stitch", "aggregate=sam", "refine=sam"]),
        ("voc21", 25, ["experiment=trident", "proxy=dinov2_vits14", "proxy.weights={weights}"]),
        ("voc20", 50, ["inference=slide", "proxy=sam", "refine=vote", "refine.points=8", "benchmark.limit=3"]),
    ],
)
def test_high_resolution(benchmark, least, more, clip_model, weights, data, tmp_path):
    run("simzss", "eval", f"model={clip_model}", f"benchmark={benchmark}", f"benchmark.root={data / ROOTS[benchmark]}",
        "benchmark.limit=5", f"sam.weights={weights}/mobile_sam.pt", f"output_dir={tmp_path}", "overlays=0",
        "protocol.templates=photo", "engineered=false",
        *(value.format(weights=weights) for value in more))  # fmt: skip
    result = json.loads((tmp_path / "results.json").read_text())[benchmark]
    assert result["aAcc"] > least  # on so few photos a class that is wrongly seen once weighs as much as any
    asked = result["regions"]
    if "prompts" in asked:
        prompts, accepted, failed = (sum(asked[key].values()) for key in ("prompts", "accepted", "failed"))
        assert prompts == accepted + failed > 0 and accepted > 0
    else:
        assert asked["regions"] == sum(asked[key] for key in ("unsure", "doubles", "kept", "unseen")) and asked["kept"]


def test_evaluation_of_all_equals_numpy_on_the_masks_of_segment(clip_model, data, tmp_path):
    """Voc20 and ade20k, plain names: mIoU by a program of its own, from the PNG files that `segment` wrote."""
    run("simzss", "eval", f"model={clip_model}", "benchmark=all", f"benchmark.root={data}", "benchmark.limit=8",
        f"output_dir={tmp_path}/eval", "overlays=1", "engineered=false", "protocol.templates=photo")  # fmt: skip
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert {name for name, result in results.items() if "mIoU" in result} >= {"voc20", "voc21", "coco_object", "ade20k"}
    assert "missing" in results["cityscapes"]
    voc, ade = data / "VOCdevkit" / "VOC2012", data / "ADEChallengeData2016"
    names = (voc / "ImageSets/Segmentation/val.txt").read_text().split()[:8]
    sets = {
        "voc20": [(voc / f"JPEGImages/{name}.jpg", voc / f"SegmentationClass/{name}.png") for name in names],
        "ade20k": [
            (ade / f"images/validation/{mask.stem}.jpg", mask)
            for mask in sorted((ade / "annotations/validation").glob("*.png"))[:8]
        ],
    }
    for benchmark, pairs in sets.items():
        classes = [line.strip() for line in (CONF / f"names/{benchmark}.txt").read_text().splitlines()]
        classes = [line for line in classes if line and not line.startswith("#")]
        run("simzss", "segment", *(photo for photo, _ in pairs), f"model={clip_model}",
            f"classes={','.join(classes)}", f"output_dir={tmp_path}/{benchmark}",
            "protocol.templates=photo")  # fmt: skip
        matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
        for photo, mask in pairs:
            truth = np.asarray(Image.open(mask)).astype(int) - 1
            found = np.asarray(Image.open(tmp_path / benchmark / f"{photo.stem}_mask.png")).astype(int)
            counted = (truth >= 0) & (truth < len(classes))
            np.add.at(matrix, (truth[counted], found[counted]), 1)
        union = matrix.sum(axis=0) + matrix.sum(axis=1) - matrix.diagonal()
        expected = 100 * (matrix.diagonal()[union > 0] / union[union > 0]).mean()
        assert results[benchmark]["mIoU"] == pytest.approx(expected, abs=1e-6)


def test_retrieval(clip_model, data, tmp_path):
    flickr = data / "flickr8k"
    run("simzss", "eval", f"model={clip_model}", "benchmark=retrieval", f"benchmark.root={flickr}/images",
        f"benchmark.captions={flickr}/captions_val.json", "benchmark.limit=100", f"output_dir={tmp_path}")  # fmt: skip
    result = json.loads((tmp_path / "results.json").read_text())["retrieval"]
    assert result["images"] == 100 and result["captions"] == 500
    assert result["image_to_text"]["R@1"] > 20 and result["text_to_image"]["R@1"] > 20


def test_training_with_masks(clip_model, data, tmp_path):
    """A few steps on twelve photos: the loss falls, if not at each step, and classes are named as before."""
    run("simzss", "train-masks", "experiment=mrovseg_cpu", f"model={clip_model}", "masks.benchmark=voc21",
        f"masks.root={data / 'VOCdevkit'}", "masks.limit=12", "masks.exclude_classes=[person]", "trainer.epochs=2",
        "protocol.templates=photo", f"output_dir={tmp_path}/run", "trainer.progress_bar=false")  # fmt: skip
    losses = [float(row["train/loss"]) for row in csv.DictReader((tmp_path / "run/metrics.csv").open()) if row["step"]]
    assert len(losses) == 6 and min(losses[3:]) < 0.85 * losses[0]
    run("simzss", "eval", f"model={tmp_path}/run/model", "benchmark=voc20", f"benchmark.root={data / 'VOCdevkit'}",
        f"benchmark.split={tmp_path}/run/held_out.txt", "benchmark.limit=8", f"output_dir={tmp_path}/eval",
        "overlays=0", "engineered=false", "protocol.templates=photo")  # fmt: skip
    result = json.loads((tmp_path / "eval" / "results.json").read_text())["voc20"]
    assert result["aAcc"] > 25 and result["trained_with_masks"]["harmonic"] > 1


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "dinov2_vits14"])
def test_another_backbone_by_one_word(backbone, shards, weights, data, tmp_path):
    run("simzss", "train", "experiment=real_cpu", f"backbone={backbone}", f"data.shards={shards}/*.tar",
        f"backbone.weights={weights}", f"text.weights={weights}/minilm", f"output_dir={tmp_path}/run",
        "data.batch_size=128", "trainer.epochs=6", "trainer.progress_bar=false")  # fmt: skip
    run("simzss", "eval", f"model={tmp_path}/run/model", "benchmark=voc20", f"benchmark.root={data / 'VOCdevkit'}",
        "benchmark.limit=40", f"output_dir={tmp_path}/eval", "compare_untrained=true", "engineered=false",
        "protocol.templates=photo")  # fmt: skip
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["voc20"]["mIoU"] > 2 * results["voc20_untrained"]["mIoU"]
