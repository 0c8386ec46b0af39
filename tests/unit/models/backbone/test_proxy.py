"""Backbones whose last block attends by the similarities of another model's features."""

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
import torch.nn.functional as F

from simzss.models.backbone.base import Backbone
from simzss.models.settings import ProxySettings
from tests.support.loops import proxy_block
from tests.support.models import TINY_VIT, make_backbone, refused, shaken
from tests.unit.models.backbone.test_timm import MODELS, VITS, backbone_of, by_timm, finished, last_block_input, photo

CNN = "test_resnet.r160_in1k"  # of stride 32
PROXY = ProxySettings(name="other", timm_name=TINY_VIT, weights="random")
BY_SAM = ProxySettings(name="sam")


def proxied(proxy: ProxySettings = PROXY, **changes) -> Backbone:
    """A backbone with a proxy, both well shaken."""
    backbone = make_backbone(proxy, features="proxy", **changes)
    shaken(backbone.model)
    if backbone.proxy_backbone is not None:
        shaken(backbone.proxy_backbone.model, seed=7)
    return backbone


def by_loop(backbone: Backbone, images: torch.Tensor, proxy: torch.Tensor) -> torch.Tensor:
    """Patches (N, D) of one image in float64, by proxy features (G, h, w)."""
    model, tokens = last_block_input(backbone, images)
    grid = (images.shape[2] // backbone.stride, images.shape[3] // backbone.stride)
    numbers = (backbone.proxy.beta, backbone.proxy.gamma, model.blocks[-1].norm1.eps)
    out = proxy_block(dict(model.blocks[-1].state_dict()), tokens, grid, proxy, *numbers)
    return finished(model, out, backbone.project)


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("name", VITS)
def test_features_equal_a_loop(name, project):
    backbone = proxied(timm_name=name, project=project)
    images = photo(48, 64)
    found = backbone(images)
    proxy = by_timm(TINY_VIT, backbone.proxy_backbone, images)[1][0].permute(2, 0, 1)
    expected = by_loop(backbone, images, proxy)
    assert found.grid == (3, 4)
    assert backbone.width == expected.shape[1] == (1000 if project else MODELS[name][1])
    assert expected.abs().mean() > 0.02  # not a comparison of zeros
    torch.testing.assert_close(found.patches[0].double(), expected, rtol=1e-5, atol=2e-5)
    assert (found.patches - backbone_of(name, "value", project)(images).patches).abs().max() > 0.05
    torch.testing.assert_close(found.cls, backbone_of(name, "last", project)(images).cls, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone(images.float() / 255).patches, found.patches, rtol=1e-4, atol=1e-4)
    maps = backbone.patch_map(images)
    torch.testing.assert_close(backbone.finish(maps.flatten(2).mT), found.patches, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "resized"),
    [(64, 96, (64, 96)), (48, 112, (64, 128)), (16, 160, (32, 160)), (144, 32, (128, 32))],  # 1.5, 3.5; 0.5; 4.5
)
def test_proxy_of_another_stride(height, width, resized):
    """It sees the image resized, and the features lie on its grid."""
    # Untrained, it finds all patches much alike.
    backbone = proxied(PROXY.replace(timm_name=CNN, beta=1.0, gamma=30.0))
    given = []
    backbone.proxy_backbone.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    images = photo(height, width)
    found = backbone(images)
    assert [image.shape for image in given] == [(1, 3, *resized)]
    options = {"mode": "bicubic", "antialias": True}
    small = F.interpolate(images.double() / 255, resized, **options).clamp(0, 1)[0]
    torch.testing.assert_close(given[0][0].double(), small, rtol=1e-5, atol=1e-5)
    assert found.grid == (resized[0] // 32, resized[1] // 32)
    assert found.patches.shape == (1, math.prod(found.grid), 64)
    proxy = by_timm(CNN, backbone.proxy_backbone, 255 * small[None])[1][0].permute(2, 0, 1)
    torch.testing.assert_close(found.patches[0].double(), by_loop(backbone, images, proxy), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("features", ["value", "self"])
def test_dense_features_of_the_proxy(features):
    backbone = proxied(PROXY.replace(features=features))
    alone = make_backbone(features=features)
    alone.model.load_state_dict(backbone.proxy_backbone.model.state_dict())
    images = photo(48, 64, count=2)
    proxy = alone(images).patches.mT.unflatten(2, (3, 4))
    torch.testing.assert_close(backbone(images).patches, backbone(images, proxy).patches, rtol=1e-5, atol=1e-5)
    assert (backbone(images).patches - proxied()(images).patches).abs().max() > 0.01


@pytest.mark.parametrize("proxy", [PROXY, BY_SAM], ids=["own", "none"])
def test_proxy_features_that_are_given(proxy):
    """They are used in place of the backbone's own, on their own grid, image by image."""
    backbone = proxied(proxy)
    images = photo(48, 64, count=2)
    features = torch.randn(2, 5, 2, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    found = backbone(images, features)
    assert found.grid == (2, 6) and found.patches.shape == (2, 12, 64)
    for number in range(2):
        expected = by_loop(backbone, images[number : number + 1], features[number])
        torch.testing.assert_close(found.patches[number].double(), expected, rtol=1e-5, atol=2e-5)
    if proxy is BY_SAM:
        assert backbone.proxy_backbone is None and backbone.width == 64
        refused(lambda: backbone(images), "proxy=sam", "whole photos")
        refused(lambda: backbone.patch_map(images), "proxy=sam", "whole photos")


def test_frozen_and_no_part_of_the_fingerprint():
    backbone = proxied()
    torch.nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    plain, other = make_backbone(ProxySettings()), make_backbone(PROXY, features="proxy")
    assert other.fingerprint == plain.fingerprint != other.proxy_backbone.fingerprint
    assert plain.proxy_backbone is None and plain.proxy is None


def test_half_precision():
    backbone = proxied()
    images = photo(64, 64)
    exact = backbone(images)
    rounded = backbone.use_precision("bf16-mixed")(images)
    assert {p.dtype for p in backbone.parameters()} == {rounded.patches.dtype} == {torch.bfloat16}
    assert F.cosine_similarity(rounded.patches.float(), exact.patches, dim=-1).min() > 0.99
    assert (rounded.patches.float() - exact.patches).abs().max() > 0  # it was rounded
    refused(lambda: backbone.use_precision("32-true"), "precision=32-true", "load the model again")


@pytest.mark.parametrize("call", ["forward", "patch_map"])
def test_two_threads_with_different_proxy_features(call):
    """No state of an image is kept on the backbone: both threads are in the midst of it at once."""
    backbone = proxied()
    first, second = photo(48, 64, seed=1), photo(64, 32, seed=2)
    features = torch.randn(1, 5, 6, 2, generator=torch.Generator().manual_seed(0)) + 0.5
    jobs = [(first, features), (second, features.flip(2)[:, :, :4]), (first, None), (second, None)]

    def run(job):
        found = getattr(backbone, call)(*job)
        return found.patches if call == "forward" else found

    alone = [run(job) for job in jobs]
    meeting = Barrier(2, timeout=10)
    backbone.model.blocks[0].register_forward_pre_hook(lambda *_: (meeting.wait(), None)[1])
    with ThreadPoolExecutor(2) as threads:
        for one, other in ((0, 1), (0, 3), (2, 1), (2, 3)):
            together = list(threads.map(run, [jobs[one], jobs[other]]))
            torch.testing.assert_close(together[0], alone[one], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(together[1], alone[other], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("proxy", "changes", "parts"),
    [
        (None, {"features": "proxy"}, ["backbone.features=proxy", "proxy=NAME"]),
        (ProxySettings(), {"features": "proxy"}, ["backbone.features=proxy", "proxy=NAME"]),
        (PROXY, {"features": "last"}, ["proxy=other", "not last"]),
        (PROXY, {"features": "self"}, ["proxy=other", "not self"]),
        (PROXY, {"features": "proxy", "timm_name": CNN}, ["backbone.features=proxy", f"use last for {CNN}"]),
        (BY_SAM, {"features": "proxy", "timm_name": CNN}, ["backbone.features=proxy", "use last"]),
    ],
    ids=["none", "no name", "last", "self", "cnn", "cnn by sam"],
)
def test_settings_that_do_not_go_together(proxy, changes, parts):
    refused(lambda: make_backbone(proxy, **changes), *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"weights": "nowhere.pth"}, ["proxy.weights=nowhere.pth does not exist"]),
        ({"weights": "."}, ["proxy.weights=. holds no other{"]),
        ({"timm_name": "vit_smal_patch16_224"}, ["vit_small_patch16_224"]),
        ({"features": "proxy"}, ["proxy.features=proxy"]),
        ({"features": "self", "timm_name": CNN}, ["proxy.features=self", f"use last for {CNN}"]),
    ],
    ids=["missing file", "folder without it", "name", "proxy of a proxy", "self of a cnn"],
)
def test_proxies_that_cannot_be_made(changes, parts, tmp_path, monkeypatch):
    """The setting that is named is that of the proxy."""
    monkeypatch.chdir(tmp_path)
    message = refused(lambda: make_backbone(PROXY.replace(**changes), features="proxy"), "proxy=other: ", *parts)
    assert "backbone.weights" not in message and "backbone.features" not in message
