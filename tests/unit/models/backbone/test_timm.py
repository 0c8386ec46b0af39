"""Features of timm backbones against timm itself and against loops in float64."""

import copy
import math

import pytest
import timm
import torch
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock, VisionTransformer

from simzss.models.backbone.base import Backbone
from simzss.models.backbone.dense import dense_last_block, supports_dense
from tests.support.loops import layer_norm, linear
from tests.support.models import TINY_VIT, make_backbone, refused, shaken

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MODELS = {  # timm's name: stride, width, prefix tokens (None: a map), mean and std, image size, averages
    TINY_VIT: (16, 64, 1, HALF, 160, False),
    "test_vit2.r160_in1k": (16, 64, 1, HALF, 160, True),  # a register, no class token, average pooling
    "test_vit3.r160_in1k": (16, 96, 1, HALF, 160, False),  # a register, no class token, attention pooling as SigLIP
    "test_efficientnet.r160_in1k": (32, 256, None, IMAGENET, 160, True),
    "test_resnet.r160_in1k": (32, 96, None, HALF, 160, True),
    "test_convnext.r160_in1k": (32, 64, None, HALF, 160, True),
    "swin_tiny_patch4_window7_224": (32, 768, None, IMAGENET, 96, True),
}
VITS = [name for name, (_, _, prefix, *_) in MODELS.items() if prefix is not None]
_made: dict[str, Backbone] = {}


@pytest.fixture(params=MODELS)
def named(request):
    """(timm name, backbone), each backbone made once."""
    if request.param not in _made:
        _made[request.param] = make_backbone(timm_name=request.param, image_size=MODELS[request.param][4])
        shaken(_made[request.param].model, amount=0.02)
    return request.param, _made[request.param]


def photo(height: int, width: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def by_timm(name: str, backbone: Backbone, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Class vector and patches (B, h, w, D) of a separate timm model with the same weights, in float64."""
    stride, _, prefix, (mean, std), *_ = MODELS[name]
    options = {"dynamic_img_size": True} if prefix is not None or "swin" in name else {}
    model = timm.create_model(name, num_classes=0, **options).eval()
    model.load_state_dict(backbone.model.state_dict(), strict=True)
    model = model.double()
    pixels = torch.stack([(images[:, c].double() / 255 - mean[c]) / std[c] for c in range(3)], dim=1)
    with torch.no_grad():
        cls, tokens = model(pixels), model.forward_features(pixels)
    if prefix is not None:
        patches = model.fc_norm(tokens[:, prefix:])  # after average pooling timm norms; a patch is an average of one
        tokens = patches.unflatten(1, (images.shape[2] // stride, images.shape[3] // stride))
    elif "swin" not in name:
        tokens = tokens.movedim(1, -1)
    return cls, tokens


@pytest.mark.parametrize("shape", ["own", "wide", "tall"])
def test_features_equal_timm(named, shape):
    name, backbone = named
    stride, width, _, _, size, averages = MODELS[name]
    height, breadth = {"own": (size, size), "wide": (3 * stride, 7 * stride), "tall": (6 * stride, 2 * stride)}[shape]
    images = photo(height, breadth, count=2)
    found = backbone(images)
    cls, patches = by_timm(name, backbone, images)
    rows, columns = height // stride, breadth // stride
    assert (backbone.stride, backbone.width, backbone.averages) == (stride, width, averages)
    assert found.grid == (rows, columns) and found.cls.shape == (2, width)
    torch.testing.assert_close(found.cls.double(), cls, rtol=1e-3, atol=1e-3)
    scale = patches.abs().max()
    assert (found.patches.double() - patches.flatten(1, 2)).abs().max() < 1e-4 * scale
    # Neighbours differ by far more than that, so that a wrong order would be seen.
    assert (patches[:, 0, 0] - patches[:, 0, 1]).abs().max() > 1e-2 * scale
    assert (patches[:, 0, 0] - patches[:, 1, 0]).abs().max() > 1e-2 * scale
    mean = torch.nn.functional.cosine_similarity(found.patches.mean(dim=1), found.cls)
    assert ((mean > 0.9) == averages).all() or shape != "own"

    maps = backbone.patch_map(images)
    assert maps.shape == (2, width, rows, columns)
    in_rows = torch.stack([maps[:, :, y, x] for y in range(rows) for x in range(columns)], dim=1)
    torch.testing.assert_close(backbone.finish(in_rows), found.patches, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(backbone(images.float() / 255).patches, found.patches, rtol=1e-4, atol=1e-4)


def test_frozen(named):
    name, backbone = named
    mean, std = MODELS[name][3]
    assert backbone.mean.flatten().tolist() == pytest.approx(mean, abs=1e-6)
    assert backbone.std.flatten().tolist() == pytest.approx(std, abs=1e-6)
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    assert backbone.train() is backbone
    torch.nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    images = photo(2 * backbone.stride, 2 * backbone.stride, count=2).float().div(255).requires_grad_()
    found = backbone(images)
    assert not found.cls.requires_grad and not found.patches.requires_grad
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("features", ["last", "value", "self"])
def test_half_precision(features):
    backbone = backbone_of(TINY_VIT, features, False)
    images = photo(64, 48)
    exact = backbone(images).patches
    backbone.use_precision("32-true").use_precision("bf16-mixed").use_precision("bf16-mixed")
    rounded, maps = backbone(images).patches, backbone.patch_map(images)
    assert rounded.dtype == maps.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(rounded.float(), exact, dim=-1).min() > 0.99
    assert (rounded.float() - exact).abs().max() > 0  # it was rounded
    # Maps that became float32 on the way are finished in the dtype of the weights.
    torch.testing.assert_close(backbone.finish(maps.float().flatten(2).mT), rounded, rtol=1e-2, atol=1e-2)
    refused(lambda: backbone.use_precision("32-true"), "precision=32-true", "load the model again")


# Dense features -------------------------------------------------------------------------------------------------------


def attention_by_loop(
    weights: dict[str, torch.Tensor], tokens: torch.Tensor, heads: int, mode: str, eps: float
) -> torch.Tensor:
    """Attention part of a block from its weights, (T, C) float64, head by head and token by token."""
    normed = layer_norm(weights, "norm1", tokens, eps)
    count, channels = tokens.shape
    size = channels // heads
    qkv = linear(weights, "attn.qkv", normed)
    out = torch.zeros_like(tokens)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        query, value = qkv[:, :channels][:, part], qkv[:, 2 * channels :][:, part]
        query = layer_norm(weights, "attn.q_norm", query, eps)
        for i in range(count):
            if mode == "value":
                out[i, part] = value[i]
                continue
            score = torch.stack([query[i] @ query[j] / math.sqrt(size) for j in range(count)])
            share = torch.exp(score - score.max())
            out[i, part] = sum(share[j] * value[j] for j in range(count)) / share.sum()
    out = linear(weights, "attn.proj", layer_norm(weights, "attn.norm", out, eps))
    return out * weights["ls1.gamma"] if "ls1.gamma" in weights else out


def last_block_input(backbone: Backbone, images: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model in float64, and the tokens (T, C) of one image before its last block."""
    model = copy.deepcopy(backbone.model).double()
    seen: list[torch.Tensor] = []
    model.blocks[-1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        model.forward_features((images.double() / 255 - backbone.mean.double()) / backbone.std.double())
    return model, seen[0][0]


def finished(model: torch.nn.Module, out: torch.Tensor, project: bool) -> torch.Tensor:
    """Norms and head after the last block, row by row."""
    for name in ("norm", "fc_norm"):
        module = getattr(model, name)
        weights = {f"{name}.{key}": value for key, value in module.state_dict().items()}
        out = layer_norm(weights, name, out, getattr(module, "eps", 0.0))
    weights = {f"head.{key}": value for key, value in model.head.state_dict().items()}
    return linear(weights, "head", out) if project else out


def backbone_of(name: str, features: str, project: bool) -> Backbone:
    backbone = make_backbone(timm_name=name, features=features, project=project)
    shaken(backbone.model)
    return backbone


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("mode", ["value", "self"])
@pytest.mark.parametrize("name", VITS)
def test_dense_features_equal_a_loop(name, mode, project):
    backbone, last = backbone_of(name, mode, project), backbone_of(name, "last", project)
    images = photo(48, 64)
    found, usual = backbone(images), last(images)
    model, tokens = last_block_input(backbone, images)
    block = model.blocks[-1]
    out = attention_by_loop(dict(block.state_dict()), tokens, block.attn.num_heads, mode, block.norm1.eps)
    expected = finished(model, out[model.num_prefix_tokens :], project)
    assert found.grid == (3, 4)
    assert backbone.width == expected.shape[1] == (1000 if project else MODELS[name][1])
    assert expected.abs().mean() > 0.02  # not a comparison of zeros
    torch.testing.assert_close(found.patches[0].double(), expected, rtol=1e-5, atol=1e-5)
    assert (found.patches - usual.patches).abs().max() > 0.05
    torch.testing.assert_close(found.cls, usual.cls, rtol=1e-5, atol=1e-5)  # the class token is not changed
    maps = backbone.patch_map(images)
    torch.testing.assert_close(backbone.finish(maps.flatten(2).mT), found.patches, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["value", "self"])
def test_normed_queries_and_scaled_attention(mode):
    """Block variants that few timm models have: normed queries, a norm before the projection, layer scale."""
    torch.manual_seed(0)
    block = Block(12, 3, qkv_bias=True, qk_norm=True, scale_attn_norm=True, init_values=1.0).double()
    shaken(block, amount=0.5)
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        found = dense_last_block(block, tokens, mode)
    for one, rows in zip(found, tokens, strict=True):
        expected = attention_by_loop(dict(block.state_dict()), rows, 3, mode, block.norm1.eps)
        torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-10)


def test_projection_is_the_head_of_every_token():
    plain, projected = backbone_of(TINY_VIT, "last", False), backbone_of(TINY_VIT, "last", True)
    projected.model.load_state_dict(plain.model.state_dict(), strict=False)
    images = photo(64, 64)
    before, after = plain(images), projected(images)
    weight, bias = projected.model.head.weight.double(), projected.model.head.bias.double()
    assert weight.shape == (1000, 64)
    expected = torch.stack([weight @ token.double() + bias for token in before.patches[0]])
    torch.testing.assert_close(after.patches[0].double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.cls[0].double(), weight @ before.cls[0].double() + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "supported"),
    [
        ({}, True),
        ({"block_fn": ParallelScalingBlock}, False),
        ({"block_fn": ResPostBlock}, False),
        ({"attn_layer": "diff"}, False),
        (None, False),
    ],
    ids=["standard", "parallel", "post-norm", "differential", "cnn"],
)
def test_blocks_with_dense_features(kind, supported):
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    cnn = timm.create_model("test_resnet", num_classes=0)
    assert supports_dense(cnn if kind is None else VisionTransformer(**options, **kind)) == supported


def test_class_token_of_dinov3():
    """timm averages its patches, where its authors use the class token."""
    backbone = make_backbone(timm_name="vit_small_patch16_dinov3.lvd1689m")
    shaken(backbone.model, amount=0.02)
    images = photo(32, 32)
    with torch.no_grad():
        token = backbone.model.forward_features((images / 255 - backbone.mean) / backbone.std)[:, 0]
    torch.testing.assert_close(backbone(images).cls, token, rtol=1e-3, atol=1e-3)


# Errors ---------------------------------------------------------------------------------------------------------------

CNN = "test_resnet.r160_in1k"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"timm_name": "vit_smal_patch16_224"}, ["vit_smal_patch16_224", "vit_small_patch16_224"]),
        ({"timm_name": "zzzzzz"}, ["zzzzzz"]),
        ({"timm_name": "test_vit.nonsense"}, ["test_vit.nonsense"]),
        ({"features": "slef"}, ["features=slef", "self"]),
        ({"timm_name": CNN, "features": "self"}, ["backbone.features=self", "last", CNN]),
        ({"timm_name": CNN, "project": True}, ["backbone.project", CNN]),
        ({"image_size": 70}, ["70", "16", "64", "80", "tiny"]),
        ({"timm_name": CNN, "image_size": 48}, ["48", "32", "64"]),
        *(({"timm_name": n, "image_size": 224}, [n]) for n in ("pit_ti_224", "xcit_nano_12_p16_224", "mixer_s32_224")),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(changes, parts):
    refused(lambda: make_backbone(**changes), *parts)


def test_sizes_of_images():
    backbone = make_backbone()
    backbone.check_size(16, 4096)
    refused(lambda: backbone.check_size(32, 40), "40", "32", "48")
    refused(lambda: backbone.check_size(8, 32), "8", "16")
    fixed = make_backbone(timm_name="cait_xxs24_224", image_size=224)
    refused(lambda: fixed(photo(48, 48)), "224")
