import json

import pytest

from simzss.features.metadata import FeatureMetadata
from simzss.features.views import Views
from simzss.models.settings import ProxySettings
from tests.support.models import TINY_VIT, make_backbone

PROXY = {"name": "other", "timm_name": TINY_VIT, "weights": "random", "beta": 1.2, "gamma": 3.0}


def described(backbone=None, views=2, storage="int8", precision="32-true", grid=(4, 4)) -> FeatureMetadata:
    return FeatureMetadata.of(backbone or make_backbone(), Views(64, views), storage, precision, grid)


def proxied(**changes):
    return make_backbone(ProxySettings(**PROXY | changes), features="proxy")


def damaged(backbone, part="self"):
    """The backbone with other normalisation and weights."""
    changed = backbone if part == "self" else backbone.proxy_backbone
    changed.mean = changed.mean + 0.25
    changed.fingerprint = "abc"
    return backbone


@pytest.mark.parametrize("make", [make_backbone, proxied])
def test_through_json(make):
    found = described(make())
    again = FeatureMetadata.model_validate(json.loads(json.dumps(found.to_json())))
    assert again == found and again.fingerprint == found.fingerprint
    assert (again.views, again.patches, again.width) == (2, 16, 64)
    assert again.backbone_differences(make()) == []
    assert again.backbone_differences(make().use_precision("bf16-mixed")) == []  # the same file


def test_the_record_keeps_its_keys():
    """Caches of before there were proxies still fit, and so do those with the old names of beta and gamma."""
    plain = described().backbone
    assert plain.keys() == {"name", "timm_name", "weights", "features", "project", "image_size", "mean", "std"}
    with_proxy = described(proxied()).backbone
    proxy = proxied().proxy_backbone
    expected = plain | {"name": "other", "weights": proxy.fingerprint, "image_size": proxy.image_size}
    expected |= {"shift": 1.2, "gain": 3.0}
    assert with_proxy == plain | {"features": "proxy", "proxy": expected}


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        (make_backbone, lambda: make_backbone(name="third"), ["backbone.name was tiny and is third"]),
        (make_backbone, lambda: make_backbone(image_size=96), ["backbone.image_size was 64 and is 96"]),
        (make_backbone, lambda: make_backbone(features="value"), ["backbone.features was last and is value"]),
        (make_backbone, lambda: damaged(make_backbone()), ["backbone.mean was", "backbone.weights was"]),
        (make_backbone, proxied, ["backbone.features was last and is proxy", "backbone.proxy."]),
        (proxied, lambda: proxied(name="third"), ["backbone.proxy.name was other and is third"]),
        (proxied, lambda: proxied(features="self"), ["backbone.proxy.features was last and is self"]),
        (proxied, lambda: proxied(beta=1.0), ["backbone.proxy.shift was 1.2 and is 1.0"]),
        (proxied, lambda: proxied(gamma=5.0), ["backbone.proxy.gain was 3.0 and is 5.0"]),
        (proxied, lambda: damaged(proxied(), "proxy"), ["backbone.proxy.mean was", "backbone.proxy.weights was"]),
    ],
)
def test_another_backbone_is_named(was, now, says):
    found = described(was()).backbone_differences(now())
    assert all(line.startswith(start) for line, start in zip(found, says, strict=False)) and len(found) >= len(says)
    assert described(was()).fingerprint != described(now()).fingerprint


def test_another_transform_is_named(monkeypatch):
    found = described()
    monkeypatch.setattr("simzss.features.metadata.TRANSFORM_VERSION", 2)
    assert found.backbone_differences(make_backbone()) == ["transform.version was 1 and is 2"]


def test_the_fingerprint_follows_every_value():
    changes = [{}, {"views": 3}, {"storage": "bfloat16"}, {"precision": "bf16-mixed"}, {"grid": (2, 8)}]
    assert len({described(**change).fingerprint for change in changes}) == 5
