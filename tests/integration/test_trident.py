"""`simzss eval` with a proxy, stitched windows, an aggregation and a refinement by SAM, all tiny."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simzss.cli import dispatch
from simzss.data.settings import Background
from simzss.models.checkpoint import load_model, save_model
from simzss.models.settings import ProxySettings
from simzss.models.simzss import SimZSS
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import AggregateSettings, Protocol, SamRefinementSettings
from simzss.settings.compose import load_choice
from tests.support import official_layouts
from tests.support.files import contents, picture
from tests.support.models import TINY_VIT, make_backbone, make_scratch, refused, save_backbone, shaken
from tests.support.processes import on_two_processes
from tests.unit.models.sam.tiny import save_first, save_second

LIMIT = 5
SMALL = ["protocol.short_side=64", "protocol.crop_size=64", "protocol.stride=32", "protocol.templates=name",
         "precision=32-true", "num_workers=0", "overlays=0", f"benchmark.limit={LIMIT}"]  # fmt: skip
REDRAWN = ["refine.threshold=0.04", "refine.min_area=1", "refine.min_iou=0.17"]
BACKGROUND = ["benchmark.background.threshold=0.06", "protocol.temperature=0.1"]
COUNTS = ("prompts", "accepted", "failed", "small", "lost")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """VOC in its layout, a model, a backbone to be its proxy, a SAM of each generation."""
    folder = tmp_path_factory.mktemp("trident")
    official_layouts.voc2012(folder)
    weights = str(save_backbone(folder / "vit.safetensors"))
    save_model(SimZSS(make_backbone(weights=weights), shaken(make_scratch())).eval(), folder / "model")
    save_backbone(folder / "proxy.safetensors", seed=5)
    save_first(folder / "sam")
    save_second(folder / "sam2")
    return folder


def arguments(folder: Path, output: str, *words: str, sam: str = "sam") -> list[str]:
    return ["eval", f"model={folder}/model", "benchmark=voc21", f"benchmark.root={folder}/VOCdevkit",
            f"sam.weights={folder}/{sam}", f"output_dir={folder}/{output}", *SMALL, *BACKGROUND, *words]  # fmt: skip


def measure(folder: Path, output: str, *words: str, sam: str = "sam") -> dict:
    dispatch(arguments(folder, output, *words, sam=sam))
    return json.loads((folder / output / "results.json").read_text(encoding="utf-8"))["voc21"]


def trident(folder: Path) -> list[str]:
    """The experiment with a proxy of a few thousand weights."""
    return ["experiment=trident", f"proxy.timm_name={TINY_VIT}", f"proxy.weights={folder}/proxy.safetensors", *REDRAWN]


@pytest.fixture(scope="module")
def measured(prepared):
    return prepared, measure(prepared, "one", *trident(prepared), "save_masks=true")


def by_segmenter(folder: Path) -> Segmenter:
    """What the words of `trident` say, with the values of VOC 21 for what they leave open."""
    proxy = ProxySettings(name="dino_vitb16", timm_name=TINY_VIT, weights=f"{folder}/proxy.safetensors")
    sizes = {"short_side": 64, "crop_size": 64, "stride": 32}
    return Segmenter(
        load_model(folder / "model", features="proxy", proxy=proxy),
        Protocol(name="trident", inference="stitch", templates="name", merge="max", temperature=0.1, **sizes),
        precision="32-true",
        refine=SamRefinementSettings(threshold=0.04, min_area=1, min_iou=0.17),
        aggregate=AggregateSettings(kind="attention", cos_factor=1.2, parts=1),
        sam=folder / "sam",
    )


def test_experiment_measures_what_its_segmenter_predicts(measured):
    """Masks, and the counts of regions summed over the images, by the names of the classes."""
    folder, result = measured
    made = by_segmenter(folder)
    names = list(result["per_class"])
    assert names[:3] == ["background", "aeroplane", "bicycle"] and len(names) == 21
    classifier = made.classifier(names[1:], Background(kind="threshold", threshold=0.06))
    counts = {name: Counter() for name in COUNTS}
    files = (folder / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").read_text().split()[:LIMIT]
    for file in files:
        found = made.predict(folder / f"VOCdevkit/VOC2012/JPEGImages/{file}.jpg", classifier)
        assert np.array_equal(np.asarray(Image.open(folder / "one" / "masks" / f"{file}.png")), found.mask.numpy())
        for name in COUNTS:
            values = getattr(found.regions, name).tolist()
            counts[name].update({label: value for label, value in zip(names, values, strict=True) if value})
    assert result["regions"] == {name: dict(counter) for name, counter in counts.items()}
    assert counts["accepted"].total() > 0 and counts["failed"].total() > 0
    assert counts["accepted"] + counts["failed"] == counts["prompts"] and "background" not in counts["prompts"]
    assert result["images"] == LIMIT and result["mIoU"] > 0


def test_results_say_how(measured):
    folder, result = measured
    facts = result["protocol"]
    assert (facts["name"], facts["inference"], facts["merge"], facts["features"]) == (
        "trident", "splice", "max", "proxy"
    )  # fmt: skip
    assert facts["correlate"] == {"kind": "attention", "cos_factor": 1.2, "temperature": 0.05, "parts": 1}
    assert facts["refine"]["kind"] == "sam" and facts["refine"]["threshold"] == 0.04
    assert facts["proxy"]["name"] == "dino_vitb16" and facts["proxy"]["weights"]
    assert facts["sam"]["name"] == f"{folder}/sam" and facts["sam"]["weights"]
    engineered = result["engineered"]
    assert set(engineered["regions"]) == set(COUNTS) and engineered["regions"] != result["regions"]
    assert set(engineered["regions"]["prompts"]) <= set(result["per_class"])  # the plain name stands for the class


def test_experiment_takes_the_values_of_the_set(prepared):
    """What neither the experiment nor the user says comes from the set's file; the user's own word comes first.

    But where the background has a threshold, as beside the plain names, regions begin there.
    """
    values = load_choice("benchmark", "voc21")["protocols"]["trident"]
    words = [word for word in trident(prepared) if not word.startswith("refine.threshold")]
    assert settled(measure(prepared, "values", *words, "benchmark.limit=1")) == (
        values["cos_factor"], values["parts"], 0.06, values["threshold"]
    )  # fmt: skip
    others = ["benchmark.protocols={trident: {cos_factor: 0.9, parts: 2, threshold: 0.03}}", "benchmark.limit=1"]
    assert settled(measure(prepared, "others", *words, *others, "aggregate.parts=3")) == (0.9, 3, 0.06, 0.03)


def settled(result: dict) -> tuple[float, int, float, float]:
    """`cos_factor`, `parts`, and the threshold of regions beside the plain and the engineered names."""
    facts, engineered = result["protocol"], result["engineered"]["protocol"]
    assert engineered["correlate"] == facts["correlate"]
    return (facts["correlate"]["cos_factor"], facts["correlate"]["parts"], facts["refine"]["threshold"],
            engineered["refine"]["threshold"])  # fmt: skip


def test_untrained_proxy(prepared):
    """`random` needs no file: the whole path can be tried before any weights are at hand."""
    words = ["experiment=trident", f"proxy.timm_name={TINY_VIT}", "proxy.weights=random", *REDRAWN]
    found = measure(prepared, "random", *words, "engineered=false", "benchmark.limit=2")
    assert found["images"] == 2 and found["protocol"]["proxy"]["name"] == "dino_vitb16"


@pytest.mark.parametrize("sam", ["sam", "sam2"])
def test_sam_guides_aggregates_and_votes(prepared, sam):
    words = ["inference=stitch", "proxy=sam", "aggregate=sam", "refine=vote", "refine.points=4",
             "refine.min_stability=0", f"refine.min_iou={0 if sam == 'sam' else 0.5}"]  # fmt: skip
    found = measure(prepared, f"vote_{sam}", *words, "engineered=false", "benchmark.limit=2", sam=sam)
    assert found["protocol"]["correlate"]["kind"] == ("attention" if sam == "sam" else "embedding")
    assert found["protocol"]["proxy"] == {"name": "sam", "shift": 1.2, "gain": 3.0, "weights": None}
    regions = found["regions"]
    root = prepared / "VOCdevkit" / "VOC2012"
    files = (root / "ImageSets/Segmentation/val.txt").read_text().split()[:2]
    sizes = [Image.open(root / "JPEGImages" / f"{file}.jpg").size for file in files]
    assert regions["pixels"] == sum(width * height for width, height in sizes)
    assert regions["regions"] == 3 * regions["points"] > 0 and isinstance(regions["lost"], dict)
    assert regions["unsure"] + regions["doubles"] + regions["kept"] + regions["unseen"] == regions["regions"]


def test_runs_without_regions_have_no_counts(prepared):
    found = measure(prepared, "plain", "inference=stitch", "aggregate=sam", "engineered=false", "benchmark.limit=2")
    assert "regions" not in found and found["protocol"]["refine"] == "none"


# Two processes --------------------------------------------------------------------------------------------------------


def test_two_processes_count_as_one(measured, tmp_path):
    """Five images on two processes: the regions of all, every mask once."""
    folder, result = measured
    words = arguments(folder, "two", *trident(folder), "save_masks=true")
    on_two_processes(lambda rank: dispatch(words), tmp_path)
    found = json.loads((folder / "two" / "results.json").read_text(encoding="utf-8"))["voc21"]
    assert found == result
    assert contents(folder / "two" / "masks") == contents(folder / "one" / "masks") and len(found["regions"]) == 5


def test_process_without_an_image(measured, tmp_path):
    """One image on two processes: the second has no counts to add."""
    folder, _ = measured
    words = [*trident(folder), "benchmark.limit=1", "engineered=false"]
    single = measure(folder, "single", *words)
    (folder / "single" / "results.json").unlink()
    pair = arguments(folder, "single", *words)
    on_two_processes(lambda rank: dispatch(pair), tmp_path)
    assert json.loads((folder / "single" / "results.json").read_text(encoding="utf-8"))["voc21"] == single


# Other verbs and bad input --------------------------------------------------------------------------------------------


def test_photos_of_the_user(prepared, tmp_path):
    """With the old names of version 0.1, too, for one version."""
    picture(3, (90, 70)).save(tmp_path / "a.png")
    common = [f"model={prepared}/model", "classes=cat,dog", f"sam.weights={prepared}/sam", *SMALL[:5]]
    dispatch(["segment", f"{tmp_path}/a.png", *common, f"output_dir={tmp_path}/new", *trident(prepared)])
    old = ["inference=splice", "correlate=sam", "proxy.shift=1.2", "readout=concept"]
    dispatch(["segment", f"{tmp_path}/a.png", *common, f"output_dir={tmp_path}/old", *trident(prepared), *old])
    masks = [np.asarray(Image.open(tmp_path / name / "a_mask.png")) for name in ("new", "old")]
    assert set(np.unique(masks[0])) <= {0, 1} and np.array_equal(*masks)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["aggregate=sam", "inference=slide"], ("aggregate=sam", "not slide")),
        (["proxy=dinov2_vits14", "proxy.weights=nowhere"], ("proxy", "nowhere", "does not exist")),
        (["refine=sam", "sam.weights=nowhere.pt"], ("sam.weights=nowhere.pt does not exist",)),
    ],
)
def test_words_that_do_not_go_together(prepared, words, says):
    refused(lambda: measure(prepared, "broken", *words), *says)
