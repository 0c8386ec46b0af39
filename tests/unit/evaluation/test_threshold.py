import random
from dataclasses import replace

import pytest
import torch

from simzss.config import load_choice, to_plain
from simzss.data.benchmark import Benchmark, BenchmarkConfig
from simzss.evaluation.segmentation import evaluate
from simzss.evaluation.threshold import check_settings, search_threshold
from simzss.segmentation.protocol import WHOLE_336
from simzss.segmentation.segmenter import Segmenter
from tests.support.models import refused, scratch_model
from tests.support.official_layouts import voc2012

RULE = {"kind": "threshold", "threshold": 0.06}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voc")
    voc2012(folder)
    return folder


def voc(root, name: str = "voc21", **changes) -> Benchmark:
    return Benchmark(BenchmarkConfig(**(to_plain(load_choice("benchmark", name)) | {"root": str(root)} | changes)))


def segmenter() -> Segmenter:
    protocol = replace(WHOLE_336, short_side=64, templates="name", temperature=0.1)
    return Segmenter(scratch_model(), protocol, "concept", "32-true", torch.device("cpu"))


@pytest.mark.parametrize(
    ("names", "rule"), [("plain", RULE), ("engineered", {"kind": "words", "words": "names/background.txt"})]
)
def test_every_threshold_scores_as_an_evaluation_with_it(root, names, rule):
    found = search_threshold(segmenter(), voc(root, background=RULE, engineered_background=rule), names, 0.5, 3)
    count = found["images"]["chosen on"] + found["images"]["checked on"]
    assert found["images"]["chosen on"] == count // 2 and count >= 10
    chosen = set(random.Random(3).sample(range(count), count // 2))
    kind = "both" if names == "engineered" else "threshold"
    for candidate in ("0.05", "0.10", "0.20", "0.40"):
        options = {"background": RULE, "engineered_background": rule}
        column = "background" if names == "plain" else "engineered_background"
        options[column] = options[column] | {"kind": kind, "threshold": float(candidate)}
        one = evaluate(segmenter(), voc(root, **options), engineered=True).counts[names]
        picked = one.per_image[sorted(chosen)].sum(dim=0).double()
        union = picked[:, 1] + picked[:, 2] - picked[:, 0]
        expected = float((100 * picked[:, 0] / union)[union > 0].mean())
        assert found["curve"][candidate] == pytest.approx(expected, abs=1e-9), candidate
    assert len(set(found["curve"].values())) > 3
    best = max(found["curve"].values())
    assert found["mIoU"]["chosen on"] == best == found["curve"][f"{found['threshold']:.2f}"]


def test_present_threshold_is_compared_on_the_other_images(root):
    found = search_threshold(segmenter(), voc(root, background=RULE), "plain", 0.5, 3)
    counts = evaluate(segmenter(), voc(root, background=RULE)).counts["plain"]
    chosen = set(random.Random(3).sample(range(len(counts.images)), len(counts.images) // 2))
    others = [index for index in range(len(counts.images)) if index not in chosen]
    sums = counts.per_image[others].sum(dim=0).double()
    union = sums[:, 1] + sums[:, 2] - sums[:, 0]
    assert found["mIoU_configured"] == pytest.approx(float((100 * sums[:, 0] / union)[union > 0].mean()), abs=1e-9)


def test_without_a_background_there_is_no_threshold(root):
    refused(lambda: search_threshold(segmenter(), voc(root, "voc20"), "plain", 0.5, 0), "voc20", "background")


def test_one_image_is_not_enough(root):
    refused(lambda: search_threshold(segmenter(), voc(root, limit=1), "plain", 0.5, 0), "two")


@pytest.mark.parametrize(("key", "value"), [("names", "fancy"), ("share", 0.0), ("share", 1.0), ("num_workers", -1)])
def test_settings(key, value):
    plain = {"names": "plain", "share": 0.5, "num_workers": 0}
    check_settings(plain)
    refused(lambda: check_settings(plain | {key: value}), f"{key}={value}")
