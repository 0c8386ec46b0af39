import json

import pytest
import torch

from simzss.features.metadata import CacheFacts, backbone_differences, differences, facts_of
from simzss.features.views import Views
from simzss.models.backbone.base import Backbone
from simzss.models.fingerprint import fingerprint
from tests.support.models import TINY_VIT, make_backbone, shaken


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
    monkeypatch.setattr("simzss.features.metadata.TRANSFORM_VERSION", 2)
    assert backbone_differences(facts, backbone) == ["transform.version was 1 and is 2"]


def test_digest_follows_every_fact(facts, backbone):
    others = [
        facts_of(backbone, Views(64, 3), "int8", "32-true", (4, 4)),
        facts_of(backbone, Views(64, 2), "bfloat16", "32-true", (4, 4)),
        facts_of(backbone, Views(64, 2), "int8", "bf16-mixed", (4, 4)),
        facts_of(backbone, Views(64, 2), "int8", "32-true", (2, 8)),
    ]
    assert len({facts.digest, *(other.digest for other in others)}) == 5


# Another backbone as guide ----------------------------------------------------------------------------------------

PROXY = {"name": "other", "timm_name": TINY_VIT, "weights": "random", "features": "last", "shift": 1.2, "gain": 3.0}


def proxied(**changes) -> Backbone:
    return make_backbone(features="proxy", proxy=PROXY | changes)


def facts_with(**changes) -> CacheFacts:
    return facts_of(proxied(**changes), Views(64, 2), "int8", "32-true", (4, 4))


def test_facts_name_the_proxy(facts):
    guide = proxied().guide
    found = facts_with()
    assert found.backbone["proxy"] == {
        "name": "other",
        "timm_name": TINY_VIT,
        "weights": guide.fingerprint,
        "features": "last",
        "project": False,
        "image_size": guide.image_size,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "shift": 1.2,
        "gain": 3.0,
    }
    without = {key: value for key, value in found.backbone.items() if key != "proxy"}
    assert without == facts.backbone | {"features": "proxy"}
    again = CacheFacts.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found and again.digest == found.digest
    assert backbone_differences(again, proxied()) == []
    assert backbone_differences(again, proxied().use_precision("bf16-mixed")) == []  # the same file


def test_caches_of_before_there_were_proxies_still_fit(facts):
    assert "proxy" not in facts.backbone


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "third"}, ["backbone.proxy.name was other and is third"]),
        ({"features": "self"}, ["backbone.proxy.features was last and is self"]),
        ({"shift": 1.0}, ["backbone.proxy.shift was 1.2 and is 1.0"]),
        ({"gain": 5.0}, ["backbone.proxy.gain was 3.0 and is 5.0"]),
    ],
)
def test_another_proxy(change, says):
    was, other = facts_with(), proxied(**change)
    assert backbone_differences(was, other) == says
    assert was.digest != facts_of(other, Views(64, 2), "int8", "32-true", (4, 4)).digest


def test_a_proxy_of_other_weights():
    other, was = proxied(), facts_with()
    own = other.guide.fingerprint
    other.guide.fingerprint = "abc"
    assert backbone_differences(was, other) == [f"backbone.proxy.weights was {own} and is abc"]


def test_a_proxy_where_there_was_none(facts):
    found = backbone_differences(facts, proxied())
    assert found[0] == "backbone.features was last and is proxy"
    assert "backbone.proxy.name was null and is other" in found
