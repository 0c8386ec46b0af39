import json

import pytest
import torch

from simzss.cache.facts import CacheFacts, backbone_differences, differences, facts_of
from simzss.cache.views import Views
from simzss.models.fingerprint import fingerprint
from tests.support.models import make_backbone, shaken


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


@pytest.fixture
def facts(backbone):
    return facts_of(backbone, Views(64, 2), "int8", "32-true", (4, 4))


def test_through_json(facts):
    again = CacheFacts.from_json(json.loads(json.dumps(facts.to_json())))
    assert again == facts and again.digest == facts.digest
    assert (again.views, again.patches, again.width) == (2, 16, 64)
    assert differences(again.to_json(), facts.to_json()) == []


def test_differences_are_named_with_both_values():
    was = {"a": {"x": 1, "gone": "z"}, "grid": [4, 4], "same": None}
    now = {"a": {"x": 2.5}, "grid": [4, 5], "same": None, "new": True}
    assert differences(was, now) == [
        "a.gone was z and is null",
        "a.x was 1 and is 2.5",
        "grid was [4, 4] and is [4, 5]",
        "new was null and is true",
    ]


def test_this_backbone_fits(facts, backbone):
    assert backbone_differences(facts, backbone) == []
    lowered = make_backbone().use_precision("bf16-mixed")
    assert backbone_differences(facts, lowered) == []  # the same file


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "other"}, ["backbone.name was tiny and is other"]),
        ({"image_size": 96}, ["backbone.image_size was 64 and is 96"]),
        ({"features": "value"}, ["backbone.features was last and is value"]),
    ],
)
def test_another_backbone(facts, change, says):
    assert backbone_differences(facts, make_backbone(**change)) == says


def test_other_weights_and_normalisation(facts):
    other = make_backbone()
    other.mean = other.mean + 0.25
    other.fingerprint = "abc"
    found = backbone_differences(facts, other)
    assert [line.split()[0] for line in found] == ["backbone.mean", "backbone.weights"]
    assert found[1] == f"backbone.weights was {make_backbone().fingerprint} and is abc"


def test_fingerprint_is_of_the_weights():
    assert make_backbone().fingerprint == make_backbone().fingerprint
    torch.manual_seed(5)

    assert fingerprint(shaken(make_backbone().model)) != make_backbone().fingerprint


def test_another_transform(facts, backbone, monkeypatch):
    monkeypatch.setattr("simzss.cache.facts.TRANSFORM_VERSION", 2)
    assert backbone_differences(facts, backbone) == ["transform.version was 1 and is 2"]


def test_digest_follows_every_fact(facts, backbone):
    others = [
        facts_of(backbone, Views(64, 3), "int8", "32-true", (4, 4)),
        facts_of(backbone, Views(64, 2), "bfloat16", "32-true", (4, 4)),
        facts_of(backbone, Views(64, 2), "int8", "bf16-mixed", (4, 4)),
        facts_of(backbone, Views(64, 2), "int8", "32-true", (2, 8)),
    ]
    assert len({facts.digest, *(other.digest for other in others)}) == 5
