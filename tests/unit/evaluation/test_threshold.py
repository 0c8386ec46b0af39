import random

import pytest

from simzss.commands.threshold import ThresholdSettings
from simzss.data.benchmark import Benchmark, open_benchmark
from simzss.evaluation.segmentation import evaluate
from simzss.evaluation.threshold import search_threshold
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import Protocol
from tests.support.models import refused, scratch_model
from tests.support.official_layouts import voc2012

RULE = {"kind": "threshold", "threshold": 0.06}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voc")
    voc2012(folder)
    return folder


def voc(root, name: str = "voc21", **changes) -> Benchmark:
    return open_benchmark("validation", name, {"root": str(root)} | changes)


def segmenter() -> Segmenter:
    protocol = Protocol(short_side=64, templates="name", temperature=0.1)
    return Segmenter(scratch_model(), protocol, text_pooling="tokens", precision="32-true", device="cpu")


def miou_of(counts, images) -> float:
    sums = counts.per_image[sorted(images)].sum(dim=0).double()
    union = sums[:, 1] + sums[:, 2] - sums[:, 0]
    return float((100 * sums[:, 0] / union)[union > 0].mean())


@pytest.mark.parametrize(
    ("names", "rule"), [("plain", RULE), ("engineered", {"kind": "words", "words": "names/background.txt"})]
)
def test_every_threshold_scores_as_an_evaluation_with_it(root, names, rule):
    found = search_threshold(segmenter(), voc(root, background=RULE, engineered_background=rule), names, 0.5, 3)
    count = found.images_chosen + found.images_checked
    assert found.images_chosen == count // 2 and count >= 10
    chosen = set(random.Random(3).sample(range(count), count // 2))
    for candidate in (0.05, 0.1, 0.2, 0.4):
        column = "background" if names == "plain" else "engineered_background"
        tried = rule | {"kind": "both" if names == "engineered" else "threshold", "threshold": candidate}
        benchmark = voc(root, **({"background": RULE, "engineered_background": rule} | {column: tried}))
        one = evaluate(segmenter(), benchmark, engineered=True).by_names[names]
        expected = miou_of(one.counts, chosen)
        assert found.plain()["curve"][f"{candidate:.2f}"] == pytest.approx(expected, abs=1e-9), candidate
    assert len(set(found.curve.values())) > 3
    assert found.miou_chosen == max(found.curve.values()) == found.plain()["curve"][f"{found.threshold:.2f}"]


def test_present_threshold_is_compared_on_the_other_images(root):
    found = search_threshold(segmenter(), voc(root, background=RULE), "plain", 0.5, 3)
    counts = evaluate(segmenter(), voc(root, background=RULE)).by_names["plain"].counts
    chosen = set(random.Random(3).sample(range(len(counts.images)), len(counts.images) // 2))
    others = set(range(len(counts.images))) - chosen
    assert found.miou_configured == pytest.approx(miou_of(counts, others), abs=1e-9)


def test_what_cannot_be_searched(root):
    refused(lambda: search_threshold(segmenter(), voc(root, "voc20"), "plain", 0.5, 0), "voc20", "background")
    refused(lambda: search_threshold(segmenter(), voc(root, limit=1), "plain", 0.5, 0), "two")
    refused(lambda: search_threshold(segmenter(), voc(root, engineered=None), "engineered", 0.5, 0), "engineered")


@pytest.mark.parametrize(
    ("key", "value"),
    [("names", "fancy"), ("share", 0.0), ("share", 1.0), ("num_workers", -1), ("refine", {"kind": "pamr"})],
)
def test_settings(key, value):
    benchmark = {"name": "set", "root": "folder"}
    ThresholdSettings.of({"model": "m", "benchmark": benchmark})
    refused(lambda: ThresholdSettings.of({"model": "m", "benchmark": benchmark, key: value}), f"{key}=")
