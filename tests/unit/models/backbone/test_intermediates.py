import math

import pytest
import timm
import torch

from simzss.models.backbone.base import Backbone
from tests.support.loops import layer_norm, linear
from tests.support.models import make_backbone, refused, shaken

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
    model = timm.create_model(backbone.timm_name, num_classes=0, dynamic_img_size=True).eval().double()
    model.load_state_dict(backbone.model.state_dict(), strict=True)
    with torch.no_grad():
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(images.double() / 255 * 2 - 1)))
        found = [tokens]
        for block in model.blocks:
            found.append(block(found[-1]))
        end = found[-1] if backbone.features == "last" else by_own_queries(model.blocks[-1], found[-2])
        return found, model.fc_norm(model.norm(end))[:, model.num_prefix_tokens :]


def by_own_queries(block: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Attention of queries to queries alone, one head after another."""
    weights = block.state_dict()
    channels, heads = tokens.shape[2], block.attn.num_heads
    depth = channels // heads
    qkv = linear(weights, "attn.qkv", layer_norm(weights, "norm1", tokens, block.norm1.eps))
    out = torch.zeros_like(tokens)
    for head in range(heads):
        own = slice(head * depth, (head + 1) * depth)
        query, value = qkv[..., own], qkv[..., 2 * channels :][..., own]
        query = layer_norm(weights, "attn.q_norm", query, 1e-6)
        out[..., own] = (query @ query.mT / math.sqrt(depth)).softmax(dim=-1) @ value
    return block.ls1(linear(weights, "attn.proj", out))


def hooks(backbone: Backbone) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in backbone.model.modules())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_taps_equal_the_blocks_one_by_one(backbone, size):
    images = photo(*size)
    depths = list(range(VITS[backbone.timm_name][0]))
    taps, patches, grid = backbone.taps(images, depths)
    tokens, end = block_by_block(backbone, images)
    assert grid == (size[0] // 16, size[1] // 16)
    prefix = tokens[0].shape[1] - grid[0] * grid[1]
    for depth in depths:
        expected = torch.zeros(2, VITS[backbone.timm_name][1], *grid, dtype=torch.float64)
        for y in range(grid[0]):
            for x in range(grid[1]):
                expected[:, :, y, x] = tokens[depth][:, prefix + y * grid[1] + x]
        torch.testing.assert_close(taps[depth], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(patches, end, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(patches, backbone(images).patches, rtol=1e-9, atol=1e-9)
    assert not any(found.requires_grad for found in (*taps, patches))


@pytest.mark.parametrize("depths", [[3, 0], [2], [], [1, 1, 4]], ids=str)
def test_taps_come_as_asked(backbone, depths):
    images = photo(32, 48)
    every, _, _ = backbone.taps(images, range(5))
    taps, patches, grid = backbone.taps(images, depths)
    assert len(taps) == len(depths) and grid == (2, 3) and patches.shape[1] == 6
    assert all(tap.equal(every[depth]) for tap, depth in zip(taps, depths, strict=True))


def test_taps_are_of_one_forward(backbone):
    calls = []
    parts = [backbone.model.patch_embed, *backbone.model.blocks[:-1]]
    handles = [part.register_forward_hook(lambda *_: calls.append(1)) for part in parts]
    try:
        backbone.taps(photo(32, 48), [0, 1, 3, 5])
    finally:
        for handle in handles:
            handle.remove()
    assert len(calls) == len(parts)


def test_nothing_stays_behind(backbone, monkeypatch):
    assert hooks(backbone) == 0
    depths = [0, 2, 5]
    backbone.taps(photo(32, 48), depths)
    assert hooks(backbone) == 0

    during = []

    def failing(tokens: torch.Tensor) -> torch.Tensor:
        during.append(hooks(backbone))
        raise RuntimeError("out of order")

    monkeypatch.setattr(backbone.model.blocks[3], "forward", failing)
    refused(lambda: backbone.taps(photo(32, 48), depths), "32 x 48", "out of order")
    assert during == [3] and hooks(backbone) == 0
    with pytest.raises(RuntimeError, match="out of order"):
        backbone.taps(photo(64, 64), depths)
    assert hooks(backbone) == 0


def test_a_size_that_does_not_fit(backbone):
    refused(lambda: backbone.taps(photo(40, 48), [0, 1]), "backbone tiny", "40 x 48")
    assert hooks(backbone) == 0


# What can be tapped ---------------------------------------------------------------------------------------------------


def test_depths_that_a_backbone_has(backbone):
    blocks, width = VITS[backbone.timm_name]
    assert backbone.check_taps([0]) == backbone.check_taps(range(blocks)) == backbone.check_taps([]) == width


@pytest.mark.parametrize("wrong", ["below", "last", "beyond"])
def test_depths_that_it_has_not(backbone, wrong):
    blocks, _ = VITS[backbone.timm_name]
    depth = {"below": -1, "last": blocks, "beyond": 40}[wrong]
    refused(lambda: backbone.check_taps([0, depth, 99]), "backbone tiny", f"depth {depth} ", f"0 to {blocks - 1}")


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_efficientnet.r160_in1k", "test_convnext.r160_in1k"])
def test_a_cnn_has_nothing_to_tap(name):
    refused(lambda: make_backbone(timm_name=name).check_taps([0]), "backbone tiny", name, "give a ViT")


@pytest.mark.parametrize("timm_name", ["test_vit2.r160_in1k", None])
def test_a_backbone_that_another_guides_has_nothing_to_tap(timm_name):
    other = {"name": "other", "timm_name": timm_name, "weights": "random", "features": "last"}
    guided = make_backbone(features="proxy", proxy=other | {"shift": 1.2, "gain": 3.0})
    refused(lambda: guided.check_taps([0]), "backbone tiny", "features=proxy")
