"""The eight sets in their official layouts, from raw downloads to one evaluation of all and a comparison of runs."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data_prep.cityscapes
import data_prep.coco_object
import data_prep.coco_stuff
import data_prep.context
from simzss.cli import dispatch
from simzss.errors import InputError
from simzss.evaluation.counts import load_counts
from simzss.models.checkpoint import save_model
from simzss.models.simzss import SimZSS
from tests.support import official_layouts
from tests.support.files import picture
from tests.support.models import make_backbone, make_scratch, refused, save_backbone, shaken
from tests.support.processes import on_two_processes
from tests.support.program import exit_code

pytestmark = pytest.mark.slow

SETS = ["voc20", "voc21", "context59", "context60", "coco_object", "coco_stuff", "cityscapes", "ade20k"]
SMALL = ["protocol.short_side=64", "protocol.crop_size=64", "protocol.stride=32", "protocol.templates=name",
         "precision=32-true", "num_workers=0", "overlays=1"]  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """Masks by image as the files store them: class indices start at `first`, `ignored` values do not count."""

    masks: dict[str, np.ndarray]
    first: int
    ignored: tuple[int, ...]
    classes: int


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(folder, truth by set): raw downloads made by us, index masks made by the programs, a tiny model."""
    folder = tmp_path_factory.mktemp("benchmarks")
    data = folder / "data"
    voc, ade = official_layouts.voc2012(data), official_layouts.ade20k(data)
    context = official_layouts.context(data)["val"]
    things = official_layouts.coco_object(data / "coco_object")
    stuff = official_layouts.coco_stuff(data / "coco_stuff")
    city = official_layouts.cityscapes(data / "cityscapes")
    with pytest.MonkeyPatch.context() as patch:
        for program, root in (
            (data_prep.context, data / "VOCdevkit"),
            (data_prep.coco_object, data / "coco_object"),
            (data_prep.coco_stuff, data / "coco_stuff"),
            (data_prep.cityscapes, data / "cityscapes"),
        ):
            assert exit_code(program.main, [f"root={root}"], patch) == 0
    for name, seed in (("model", 0), ("other", 1)):
        backbone = make_backbone(weights=str(save_backbone(folder / "vit.safetensors")))
        save_model(SimZSS(backbone, shaken(make_scratch(), seed)).eval(), folder / name)
    return folder, {
        "voc20": Truth(voc, 1, (0, 255), 20),
        "voc21": Truth(voc, 0, (255,), 21),
        "context59": Truth(context, 1, (0, 255), 59),
        "context60": Truth(context, 0, (255,), 60),
        "coco_object": Truth(things, 0, (255,), 81),
        "coco_stuff": Truth(stuff, 0, (255,), 171),
        "cityscapes": Truth(city, 0, (255,), 19),
        "ade20k": Truth(ade, 1, (0,), 150),
    }


def measure(folder: Path, output: str, *extra: str, model: str = "model") -> dict:
    dispatch(["eval", f"model={folder / model}", f"output_dir={folder / output}", *SMALL, *extra])
    return json.loads((folder / output / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def measured(prepared):
    folder, truths = prepared
    return folder, truths, measure(folder, "all", "benchmark=all", f"benchmark.root={folder}/data", "save_masks=true")


def by_numpy(truth: Truth, folder: Path) -> float:
    """mIoU in per cent of predicted index masks, one pixel set at a time."""
    hit, either = np.zeros(truth.classes), np.zeros(truth.classes)
    for name, labels in truth.masks.items():
        found = np.asarray(Image.open(folder / f"{name}.png")).astype(int)
        counted = ~np.isin(labels, truth.ignored)
        target = labels.astype(int) - truth.first
        for index in range(truth.classes):
            a, b = (found == index) & counted, (target == index) & counted
            hit[index] += (a & b).sum()
            either[index] += (a | b).sum()
    return 100 * float(np.mean(hit[either > 0] / either[either > 0]))


@pytest.mark.parametrize("name", SETS)
def test_every_set_scores_as_numpy_says(measured, name):
    folder, truths, results = measured
    result = results[name]
    assert result["images"] == len(truths[name].masks) >= 10
    assert result["mIoU"] == pytest.approx(by_numpy(truths[name], folder / "all" / "masks" / name), abs=1e-6)
    assert result["mIoU"] > 0 and len(result["per_class"]) == truths[name].classes == len(
        result["engineered"]["per_class"]
    )
    assert result["engineered"]["mIoU"] != result["mIoU"]
    assert result["official_images"] >= 500 and result["protocol"]["name"] == "whole"


def test_report_and_table(measured):
    folder, _, results = measured
    page = (folder / "all" / "report.html").read_text(encoding="utf-8")
    table = (folder / "all" / "results.md").read_text(encoding="utf-8")
    assert list(results) == SETS
    for name in SETS:
        assert name in page and name in table
    assert "unverified" in page and "unverified" in table
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_sets_that_are_not_there_are_named(prepared, capsys):
    folder, _ = prepared
    data = folder / "some"
    shutil.copytree(folder / "data" / "VOCdevkit" / "VOC2012", data / "VOC2012")
    results = measure(folder, "some_out", "benchmark=all", f"benchmark.root={data}", "engineered=false")
    assert "mIoU" in results["voc20"] and "mIoU" in results["voc21"]
    assert all("layout" in results[name]["missing"] for name in SETS[2:])
    assert "cityscapes: not measured" in capsys.readouterr().out
    (folder / "none").mkdir()
    with pytest.raises(InputError, match="holds none of the sets"):
        measure(folder, "none_out", "benchmark=all", f"benchmark.root={folder}/none")


@pytest.mark.parametrize("protocol", ["tcl", "trident"])
def test_protocols_take_the_set_s_own_size(prepared, protocol):
    folder, _ = prepared
    sizes = {"tcl": {"cityscapes": 560, "ade20k": 448}, "trident": {"cityscapes": 688, "ade20k": 576}}[protocol]
    extra = [part for part in SMALL if not part.startswith("protocol.")]
    for name, size in sizes.items():
        dispatch(["eval", f"model={folder}/model", f"benchmark={name}", f"benchmark.root={folder}/data", "overlays=0",
                  f"protocol={protocol}", "protocol.templates=name", "benchmark.limit=1", "engineered=false",
                  f"output_dir={folder}/{protocol}", *extra])  # fmt: skip
        found = json.loads((folder / protocol / "results.json").read_text())[name]["protocol"]
        assert (found["name"], found["short_side"], found["inference"]) == (protocol, size, "slide")


def test_refinement_is_a_word(prepared):
    folder, _ = prepared
    common = ["benchmark=voc21", f"benchmark.root={folder}/data", "benchmark.limit=4", "protocol.temperature=0.1",
              "benchmark.background.threshold=0.06"]  # fmt: skip
    unrefined, refined = measure(folder, "plain", *common), measure(folder, "pamr", *common, "refine=pamr")
    assert (
        unrefined["voc21"]["protocol"]["refine"] == "none" and refined["voc21"]["protocol"]["refine"]["kind"] == "pamr"
    )
    assert unrefined["voc21"]["mIoU"] != refined["voc21"]["mIoU"]


def test_two_processes_write_what_one_writes(measured, tmp_path):
    """The same results and counts, every mask once."""
    folder, _, results = measured
    words = ["eval", f"model={folder}/model", f"output_dir={folder}/two", *SMALL, "benchmark=all", "save_masks=true",
             f"benchmark.root={folder}/data", "benchmark.sets=[voc20,cityscapes]"]  # fmt: skip
    on_two_processes(lambda rank: dispatch(words), tmp_path)
    found = json.loads((folder / "two" / "results.json").read_text(encoding="utf-8"))
    assert found == {name: results[name] for name in ("voc20", "cityscapes")}
    for name in ("voc20", "cityscapes", "cityscapes_engineered"):
        one, two = (load_counts(folder / run / "counts" / f"{name}.safetensors") for run in ("all", "two"))
        assert torch.equal(one.per_image, two.per_image) and torch.equal(one.confusion, two.confusion)
    for mask in (folder / "two" / "masks").rglob("*.png"):
        assert mask.read_bytes() == (folder / "all" / mask.relative_to(folder / "two")).read_bytes()


def test_runs_are_compared(measured, capsys):
    folder, _, _ = measured
    other = [f"benchmark.root={folder}/data", "benchmark.sets=[voc20,ade20k]"]
    measure(folder, "other_out", "benchmark=all", *other, model="other")
    capsys.readouterr()
    dispatch(
        ["report", str(folder / "all"), str(folder / "other_out"), f"output_dir={folder}/compare", "resamples=200"]
    )
    assert "voc20 (plain names)" in capsys.readouterr().out
    for suffix in ("json", "md", "html"):
        assert (folder / "compare" / f"comparison.{suffix}").stat().st_size > 200


def test_threshold_is_found(prepared, capsys):
    folder, _ = prepared
    extra = [part for part in SMALL if not part.startswith("overlays")]
    dispatch(["threshold", f"model={folder}/model", "benchmark=voc21", f"benchmark.root={folder}/data",
              f"output_dir={folder}/threshold", *extra])  # fmt: skip
    assert "threshold 0." in capsys.readouterr().out
    assert 0 < json.loads((folder / "threshold" / "threshold.json").read_text())["voc21"]["threshold"] < 1


def test_retrieval_and_classification(prepared, capsys):
    folder, _ = prepared
    photos = folder / "photos"
    for number in range(6):
        (photos / ("cat", "dog")[number % 2]).mkdir(parents=True, exist_ok=True)
        picture(number, (40, 30)).save(photos / ("cat", "dog")[number % 2] / f"{number}.jpg")
    images = [{"id": number, "file_name": f"{('cat', 'dog')[number % 2]}/{number}.jpg"} for number in range(6)]
    captions = [
        {"image_id": number, "id": number, "caption": f"a {('cat', 'dog')[number % 2]} number {number}"}
        for number in range(6)
    ]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    common = [part for part in SMALL if part in ("precision=32-true", "num_workers=0")]
    model = f"model={folder}/model"
    dispatch(["eval", model, "benchmark=retrieval", f"benchmark.root={photos}", f"output_dir={folder}/retrieval",
              f"benchmark.captions={folder}/captions.json", *common])  # fmt: skip
    assert "image to text R@1" in capsys.readouterr().out
    found = json.loads((folder / "retrieval" / "results.json").read_text())["retrieval"]
    assert found["images"] == found["captions"] == 6 and found["text_to_image"]["R@10"] == 100
    dispatch(["eval", model, "benchmark=classification", f"benchmark.root={photos}", "benchmark.templates=name",
              f"output_dir={folder}/classification", *common])  # fmt: skip
    assert "top-1" in capsys.readouterr().out
    found = json.loads((folder / "classification" / "results.json").read_text())["classification"]
    assert found["images"] == 6 and found["top5"] == 100 and set(found["per_class"]) == {"cat", "dog"}


# Bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def voc(prepared, tmp_path):
    """A copy of VOC to break."""
    shutil.copytree(prepared[0] / "data" / "VOCdevkit" / "VOC2012", tmp_path / "VOC2012")
    return tmp_path / "VOC2012"


def first(voc: Path) -> str:
    return (voc / "ImageSets/Segmentation/val.txt").read_text().split()[0]


def another_size(voc: Path) -> str:
    path = voc / "SegmentationClass" / f"{first(voc)}.png"
    Image.open(path).resize((9, 9), Image.Resampling.NEAREST).save(path)
    return first(voc)


def foreign_label(voc: Path) -> str:
    path = voc / "SegmentationClass" / f"{first(voc)}.png"
    labels = np.array(Image.open(path))
    labels[0, 0] = 77
    Image.fromarray(labels).save(path)
    return "label 77"


def missing_mask(voc: Path) -> str:
    (voc / "SegmentationClass" / f"{first(voc)}.png").unlink()
    return first(voc)


def image_that_is_not_there(voc: Path) -> str:
    with (voc / "ImageSets/Segmentation/val.txt").open("a") as file:
        file.write("2099_000001\n")
    return "2099_000001"


def broken_photo(voc: Path) -> str:
    (voc / "JPEGImages" / f"{first(voc)}.jpg").write_bytes(b"no photo")
    return first(voc)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("breaks", [another_size, foreign_label, missing_mask, image_that_is_not_there, broken_photo])
def test_broken_sets(prepared, voc, breaks, workers):
    says = breaks(voc)
    extra = ["benchmark=voc20", f"benchmark.root={voc}", f"num_workers={workers}"]
    refused(lambda: measure(prepared[0], "broken", *extra), says)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("benchmark.classes=names/cityscapes.txt", "cityscapes.txt lists 19 classes, benchmark voc20 has 20"),
        ("benchmark.engineered=names/cityscapes.txt", "cityscapes.txt lists 19 classes, benchmark voc20 has 20"),
        ("benchmark.classes=[dog,cat]", "benchmark.classes lists 2 classes, benchmark voc20 has 20"),
        ("overlays=-1", "overlays=-1"),
        ("readout=foo", "text_pooling=foo"),
    ],
)
def test_wrong_settings(prepared, extra, says):
    folder, _ = prepared
    refused(lambda: measure(folder, "broken", "benchmark=voc20", f"benchmark.root={folder}/data", extra), says)
