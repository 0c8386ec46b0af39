"""Intermediate features of ViTs against the blocks one by one, in float64."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import timm
import torch

from simzss.models.backbone.base import Backbone
from simzss.models.settings import ProxySettings
from tests.support.models import make_backbone, refused, shaken
from tests.unit.models.backbone.test_timm import attention_by_loop

VITS = {"test_vit.r160_in1k": (6, 64), "test_vit2.r160_in1k": (8, 64), "test_vit3.r160_in1k": (9, 96)}  # blocks, width
SIZES = [(64, 64), (48, 112), (96, 32), (16, 80)]
_made: dict[tuple[str, str], Backbone] = {}


@pytest.fixture(params=VITS)
def name(request):
    return request.param


@pytest.fixture(params=["last", "self"])
def backbone(name, request):
    """In float64, each made once."""
    key = (name, request.param)
    if key not in _made:
        _made[key] = make_backbone(timm_name=name, features=request.param)
        shaken(_made[key].model)
        _made[key].double()
    return _made[key]


def photo(height: int, width: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height + width)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def block_by_block(backbone: Backbone, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Tokens (B, T, C) before the first block and after each, and patches at the end, of a separate timm model."""
    model = timm.create_model(backbone.settings.timm_name, num_classes=0, dynamic_img_size=True).eval().double()
    model.load_state_dict(backbone.model.state_dict(), strict=True)
    with torch.no_grad():
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(images.double() / 255 * 2 - 1)))
        found = [tokens]
        for block in model.blocks:
            found.append(block(found[-1]))
        end, last = found[-1], model.blocks[-1]
        if backbone.features == "self":
            weights, heads = dict(last.state_dict()), last.attn.num_heads
            end = torch.stack([attention_by_loop(weights, own, heads, "self", last.norm1.eps) for own in found[-2]])
        return found, model.fc_norm(model.norm(end))[:, model.num_prefix_tokens :]


def hooks(backbone: Backbone) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in backbone.model.modules())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_blocks_one_by_one(backbone, size):
    images = photo(*size)
    depths = list(range(VITS[backbone.settings.timm_name][0]))
    found, patches, grid = backbone.intermediates(images, depths)
    tokens, end = block_by_block(backbone, images)
    assert grid == (size[0] // 16, size[1] // 16)
    prefix = tokens[0].shape[1] - grid[0] * grid[1]
    for depth in depths:
        expected = torch.zeros(2, VITS[backbone.settings.timm_name][1], *grid, dtype=torch.float64)
        for y in range(grid[0]):
            for x in range(grid[1]):
                expected[:, :, y, x] = tokens[depth][:, prefix + y * grid[1] + x]
        torch.testing.assert_close(found[depth], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(patches, end, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(patches, backbone(images).patches, rtol=1e-9, atol=1e-9)
    assert not any(tensor.requires_grad for tensor in (*found, patches))


@pytest.mark.parametrize("depths", [[3, 0], [2], [], [1, 1, 4]], ids=str)
def test_depths_as_asked(backbone, depths):
    images = photo(32, 48)
    every, _, _ = backbone.intermediates(images, range(5))
    found, patches, grid = backbone.intermediates(images, depths)
    assert len(found) == len(depths) and grid == (2, 3) and patches.shape[1] == 6
    assert all(maps.equal(every[depth]) for maps, depth in zip(found, depths, strict=True))


def test_one_forward_pass(backbone):
    calls = []
    parts = [backbone.model.patch_embed, *backbone.model.blocks[:-1]]
    handles = [part.register_forward_hook(lambda *_: calls.append(1)) for part in parts]
    try:
        backbone.intermediates(photo(32, 48), [0, 1, 3, 5])
    finally:
        for handle in handles:
            handle.remove()
    assert len(calls) == len(parts)


def test_threads_do_not_see_one_another(backbone):
    images = [photo(32, 48), photo(48, 32) // 2]
    alone = [backbone.intermediates(image, [0, 3])[0] for image in images]
    meeting = Barrier(2, timeout=10)
    handle = backbone.model.blocks[1].register_forward_pre_hook(lambda *_: (meeting.wait(), None)[1])
    try:
        with ThreadPoolExecutor(2) as threads:
            together = list(threads.map(lambda image: backbone.intermediates(image, [0, 3])[0], images))
    finally:
        handle.remove()
    for own, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(own, expected)


def test_nothing_stays_behind(backbone, monkeypatch):
    assert hooks(backbone) == 0
    depths = [0, 2, 5]
    backbone.intermediates(photo(32, 48), depths)
    refused(lambda: backbone.intermediates(photo(40, 48), depths), "backbone tiny", "40 x 48")
    assert hooks(backbone) == 0

    def failing(tokens: torch.Tensor) -> torch.Tensor:
        assert hooks(backbone) == 3
        raise RuntimeError("out of order")

    monkeypatch.setattr(backbone.model.blocks[3], "forward", failing)
    with pytest.raises(RuntimeError, match="out of order"):
        backbone.intermediates(photo(64, 64), depths)
    assert hooks(backbone) == 0


# Depths ---------------------------------------------------------------------------------------------------------------


def test_depths_that_a_backbone_has(backbone):
    blocks, width = VITS[backbone.settings.timm_name]
    for depths in ([0], range(blocks), []):
        assert backbone.check_intermediates(depths) == width
    for depth in (-1, blocks, 40):
        refused(lambda depth=depth: backbone.check_intermediates([0, depth, 99]), f"depth {depth} ", "backbone tiny",
                f"0 to {blocks - 1}")  # fmt: skip


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_efficientnet.r160_in1k", "test_convnext.r160_in1k"])
def test_cnns_have_none(name):
    refused(lambda: make_backbone(timm_name=name).check_intermediates([0]), "backbone tiny", name, "give a ViT")


@pytest.mark.parametrize("timm_name", ["test_vit2.r160_in1k", None])
def test_backbones_with_a_proxy_have_none(timm_name):
    backbone = make_backbone(ProxySettings(name="other", timm_name=timm_name, weights="random"), features="proxy")
    refused(lambda: backbone.check_intermediates([0]), "backbone tiny", "features=proxy")
