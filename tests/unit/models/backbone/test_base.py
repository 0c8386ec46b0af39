import copy
import math
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DiffAttention
from timm.models.vision_transformer import Block, ResPostBlock

from simzss.errors import InputError
from simzss.models.backbone.base import FEATURES, Backbone, with_proxy
from simzss.models.backbone.dense import dense_last_block, supports_dense
from tests.support.loops import guided_block, layer_norm, linear
from tests.support.models import TINY_VIT, backbone_options, make_backbone, refused, shaken

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MODELS = {  # timm's name: stride, width, prefix tokens (None: a map), mean and std, image size
    TINY_VIT: (16, 64, 1, HALF, 160),
    "test_vit2.r160_in1k": (16, 64, 1, HALF, 160),  # a register, no class token, average pooling
    "test_vit3.r160_in1k": (16, 96, 1, HALF, 160),  # a register, no class token, attention pooling as SigLIP
    "test_efficientnet.r160_in1k": (32, 256, None, IMAGENET, 160),
    "test_resnet.r160_in1k": (32, 96, None, HALF, 160),
    "test_convnext.r160_in1k": (32, 64, None, HALF, 160),
    "swin_tiny_patch4_window7_224": (32, 768, None, IMAGENET, 96),
}
VITS = [name for name, (_, _, prefix, _, _) in MODELS.items() if prefix is not None]
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
    stride, _, prefix, (mean, std), _ = MODELS[name]
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
    stride, width, _, _, size = MODELS[name]
    height, breadth = {"own": (size, size), "wide": (3 * stride, 7 * stride), "tall": (6 * stride, 2 * stride)}[shape]
    images = photo(height, breadth, count=2)
    found = backbone(images)
    cls, patches = by_timm(name, backbone, images)
    rows, columns = height // stride, breadth // stride
    assert (backbone.stride, backbone.width) == (stride, width)
    assert found.grid == (rows, columns)
    assert found.cls.shape == (2, width) and found.patches.shape == (2, rows * columns, width)
    torch.testing.assert_close(found.cls.double(), cls, rtol=1e-3, atol=1e-3)
    scale = patches.abs().max()
    for y in range(rows):
        for x in range(columns):
            difference = (found.patches[:, y * columns + x].double() - patches[:, y, x]).abs().max()
            assert difference < 1e-4 * scale, (y, x)
    # Neighbours differ by far more than that, so that a wrong order would be seen.
    assert (patches[:, 0, 0] - patches[:, 0, 1]).abs().max() > 1e-2 * scale
    assert (patches[:, 0, 0] - patches[:, 1, 0]).abs().max() > 1e-2 * scale


def test_uint8_and_float_agree(named):
    _, backbone = named
    images = photo(3 * backbone.stride, 4 * backbone.stride)
    exact, scaled = backbone(images), backbone(images.float() / 255)
    torch.testing.assert_close(scaled.patches, exact.patches, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scaled.cls, exact.cls, rtol=1e-4, atol=1e-4)
    other = backbone(images.float())  # 0..255 taken for 0..1 is something else
    assert not torch.allclose(other.cls, exact.cls, rtol=1e-2, atol=1e-2)


def test_own_mean_and_std(named):
    name, backbone = named
    mean, std = MODELS[name][3]
    assert backbone.mean.flatten().tolist() == pytest.approx(mean, abs=1e-6)
    assert backbone.std.flatten().tolist() == pytest.approx(std, abs=1e-6)


def test_frozen(named):
    _, backbone = named
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


def test_half_precision_keeps_the_normalisation_exact():
    backbone = make_backbone()
    shaken(backbone.model)
    images = photo(64, 64)
    exact = backbone(images)
    rounded = backbone.use_precision("bf16-mixed")(images)
    assert rounded.patches.dtype == torch.bfloat16
    similarity = torch.nn.functional.cosine_similarity(rounded.patches.float(), exact.patches, dim=-1)
    assert similarity.min() > 0.99
    assert (rounded.patches.float() - exact.patches).abs().max() > 0  # it was rounded


def test_rounded_weights_do_not_pass_for_full_precision():
    backbone = make_backbone().use_precision("32-true").use_precision("bf16-mixed").use_precision("bf16-mixed")
    refused(lambda: backbone.use_precision("32-true"), "precision=32-true", "load the model again")


# Dense features ---------------------------------------------------------------------------------------------------


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


def dense_by_loop(
    backbone: Backbone, images: torch.Tensor, mode: str, guide: torch.Tensor | None = None
) -> torch.Tensor:
    """Dense patches (N, D) of one image, in float64, from the input of the last block on; `guide` (G, h, w)."""
    model = copy.deepcopy(backbone.model).double()
    seen: list[torch.Tensor] = []
    model.blocks[-1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    pixels = (images.double() / 255 - backbone.mean.double()) / backbone.std.double()
    with torch.no_grad():
        model.forward_features(pixels)
    weights, eps = dict(model.blocks[-1].state_dict()), model.blocks[-1].norm1.eps
    if guide is None:
        out = attention_by_loop(weights, seen[0][0], model.blocks[-1].attn.num_heads, mode, eps)
        out = out[model.num_prefix_tokens :]
    else:
        grid = (images.shape[2] // backbone.stride, images.shape[3] // backbone.stride)
        out = guided_block(weights, seen[0][0], grid, guide, backbone.proxy["shift"], backbone.proxy["gain"], eps)
    final = {f"norm.{key}": value for key, value in model.norm.state_dict().items()}
    out = layer_norm(final, "norm", out, getattr(model.norm, "eps", 0.0))
    pooled = {f"fc_norm.{key}": value for key, value in model.fc_norm.state_dict().items()}
    out = layer_norm(pooled, "fc_norm", out, getattr(model.fc_norm, "eps", 0.0))
    if backbone.project:
        out = linear({f"head.{key}": value for key, value in model.head.state_dict().items()}, "head", out)
    return out


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("mode", ["value", "self"])
@pytest.mark.parametrize("name", VITS)
def test_dense_features_equal_a_loop(name, mode, project):
    backbone = make_backbone(timm_name=name, features=mode, project=project)
    shaken(backbone.model)
    images = photo(48, 64)
    found = backbone(images)
    expected = dense_by_loop(backbone, images, mode)
    assert found.grid == (3, 4)
    assert backbone.width == expected.shape[1] == (1000 if project else MODELS[name][1])
    assert expected.abs().mean() > 0.02  # not a comparison of zeros
    torch.testing.assert_close(found.patches[0].double(), expected, rtol=1e-5, atol=1e-5)
    assert (found.patches - backbone_of(name, "last", project)(images).patches).abs().max() > 0.05


def backbone_of(name: str, features: str, project: bool) -> Backbone:
    backbone = make_backbone(timm_name=name, features=features, project=project)
    shaken(backbone.model)
    return backbone


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("name", VITS)
def test_class_token_does_not_depend_on_features(name, project):
    images = photo(64, 48, count=2)
    last = backbone_of(name, "last", project)(images).cls
    others = [backbone_of(name, features, project)(images).cls for features in ("value", "self")]
    for cls in (*others, proxied(timm_name=name, project=project)(images).cls):
        torch.testing.assert_close(cls, last, rtol=1e-5, atol=1e-5)


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


def with_blocks(**kind) -> torch.nn.Module:
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    return timm.models.vision_transformer.VisionTransformer(**options, **kind)


def test_dense_features_are_offered_for_standard_blocks_only():
    assert supports_dense(with_blocks())
    assert not supports_dense(timm.create_model("test_resnet", num_classes=0))
    assert not supports_dense(with_blocks(block_fn=timm.models.vision_transformer.ParallelScalingBlock))


def test_post_norm_blocks_have_no_dense_features():
    assert not supports_dense(with_blocks(block_fn=ResPostBlock))


def test_differential_attention_has_no_dense_features():
    model = with_blocks(attn_layer="diff")
    assert isinstance(model.blocks[-1].attn, DiffAttention)
    assert not supports_dense(model)


# Another backbone as guide ----------------------------------------------------------------------------------------

CNN = "test_resnet.r160_in1k"  # of stride 32
PROXY = {"name": "other", "timm_name": TINY_VIT, "weights": "random", "features": "last", "shift": 1.2, "gain": 3.0}
BY_SAM = PROXY | {"name": "sam", "timm_name": None, "weights": None}


def proxied(proxy: dict | None = None, **changes) -> Backbone:
    """A backbone that another one guides, both well shaken."""
    backbone = make_backbone(features="proxy", proxy=PROXY | (proxy or {}), **changes)
    shaken(backbone.model)
    if backbone.guide is not None:
        shaken(backbone.guide.model, seed=7)
    return backbone


def bicubic(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(3, H, W) in 0..1 -> (3, height, width) float64: Keys' kernel of -0.5, wider where the image shrinks, clamped."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x >= 2:
            return 0.0
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2

    def along(length: int, target: int) -> torch.Tensor:
        step = length / target
        rows = torch.tensor(
            [[kernel((j + 0.5 - (i + 0.5) * step) / max(step, 1)) for j in range(length)] for i in range(target)],
            dtype=torch.float64,
        )
        return rows / rows.sum(dim=1, keepdim=True)

    down, across = along(image.shape[1], height), along(image.shape[2], width)
    return torch.stack([down @ channel @ across.T for channel in image.double()]).clamp(0, 1)


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("name", VITS)
def test_guided_features_equal_a_loop(name, project):
    backbone = proxied(timm_name=name, project=project)
    images = photo(48, 64)
    found = backbone(images)
    guide = by_timm(TINY_VIT, backbone.guide, images)[1][0].permute(2, 0, 1)
    expected = dense_by_loop(backbone, images, "proxy", guide)
    assert found.grid == (3, 4)
    assert backbone.width == expected.shape[1] == (1000 if project else MODELS[name][1])
    assert expected.abs().mean() > 0.02  # not a comparison of zeros
    torch.testing.assert_close(found.patches[0].double(), expected, rtol=1e-5, atol=2e-5)
    assert (found.patches - backbone_of(name, "value", project)(images).patches).abs().max() > 0.05
    torch.testing.assert_close(backbone(images.float() / 255).patches, found.patches, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "seen"),
    [(64, 96, (64, 96)), (48, 112, (64, 128)), (16, 160, (32, 160)), (144, 32, (128, 32))],  # 1.5, 3.5; 0.5; 4.5
)
def test_a_guide_of_another_stride_sees_the_image_resized(height, width, seen):
    """The features lie on the guide's grid then."""
    backbone = proxied({"timm_name": CNN, "shift": 1.0, "gain": 30.0})  # untrained, it finds all patches much alike
    given = []
    backbone.guide.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    images = photo(height, width)
    found = backbone(images)
    assert [image.shape for image in given] == [(1, 3, *seen)]
    resized = bicubic(images[0] / 255, *seen)
    torch.testing.assert_close(given[0][0].double(), resized, rtol=1e-5, atol=1e-5)
    assert found.grid == (seen[0] // 32, seen[1] // 32) and found.patches.shape == (1, math.prod(found.grid), 64)
    guide = by_timm(CNN, backbone.guide, 255 * resized[None])[1][0].permute(2, 0, 1)
    expected = dense_by_loop(backbone, images, "proxy", guide)
    torch.testing.assert_close(found.patches[0].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("features", ["value", "self"])
def test_dense_features_of_the_guide(features):
    backbone = proxied({"features": features})
    alone = make_backbone(features=features)
    alone.model.load_state_dict(backbone.guide.model.state_dict())
    images = photo(48, 64, count=2)
    patches = alone(images).patches
    guide = torch.stack([patches[:, y * 4 + x] for y in range(3) for x in range(4)], dim=2).unflatten(2, (3, 4))
    torch.testing.assert_close(backbone(images).patches, backbone(images, guide).patches, rtol=1e-5, atol=1e-5)
    assert (backbone(images).patches - proxied()(images).patches).abs().max() > 0.01


@pytest.mark.parametrize("proxy", [PROXY, BY_SAM], ids=["own guide", "none"])
def test_a_guide_that_is_given(proxy):
    """It is used in place of the backbone's own, on its own grid, image by image."""
    backbone = proxied(proxy)
    images = photo(48, 64, count=2)
    guide = torch.randn(2, 5, 2, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    found = backbone(images, guide)
    assert found.grid == (2, 6) and found.patches.shape == (2, 12, 64)
    for number in range(2):
        expected = dense_by_loop(backbone, images[number : number + 1], "proxy", guide[number])
        torch.testing.assert_close(found.patches[number].double(), expected, rtol=1e-5, atol=2e-5)


def test_shift_and_gain_are_those_of_the_proxy():
    images = photo(64, 64)
    plain = proxied()(images).patches
    for change in ({"shift": 0.5}, {"gain": 12.0}):
        assert (proxied(change)(images).patches - plain).abs().max() > 0.01


def test_a_proxy_without_a_backbone_needs_a_guide():
    backbone = proxied(BY_SAM)
    assert backbone.guide is None and backbone.width == 64
    refused(lambda: backbone(photo(48, 64)), "proxy=sam", "whole photos")
    refused(lambda: backbone.patch_map(photo(48, 64)), "proxy=sam", "whole photos")


def test_the_guide_is_frozen_and_no_part_of_the_backbones_weights():
    backbone = proxied()
    torch.nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    plain, guided = make_backbone(), make_backbone(features="proxy", proxy=PROXY)
    assert guided.fingerprint == plain.fingerprint != guided.guide.fingerprint
    assert plain.guide is None and plain.proxy is None


def test_half_precision_of_a_guide():
    backbone = proxied()
    images = photo(64, 64)
    exact = backbone(images)
    rounded = backbone.use_precision("bf16-mixed")(images)
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    assert backbone.guide(images).patches.dtype == rounded.patches.dtype == torch.bfloat16
    similarity = torch.nn.functional.cosine_similarity(rounded.patches.float(), exact.patches, dim=-1)
    assert similarity.min() > 0.99
    assert (rounded.patches.float() - exact.patches).abs().max() > 0  # it was rounded
    refused(lambda: backbone.use_precision("32-true"), "precision=32-true", "load the model again")


@pytest.mark.parametrize("call", ["forward", "patch_map"])
def test_two_threads_with_different_guides(call):
    """Nothing of an image is kept on the backbone: both threads are in the midst of it at once."""
    backbone = proxied()
    first, second = photo(48, 64, seed=1), photo(64, 32, seed=2)
    guide = torch.randn(1, 5, 6, 2, generator=torch.Generator().manual_seed(0)) + 0.5
    jobs = [(first, guide), (second, guide.flip(2)[:, :, :4]), (first, None), (second, None)]

    def run(job):
        found = getattr(backbone, call)(*job)
        return found.patches if call == "forward" else found

    alone = [run(job) for job in jobs]
    meeting = Barrier(2, timeout=10)

    def wait(*_):
        meeting.wait()

    backbone.model.blocks[0].register_forward_pre_hook(wait)
    with ThreadPoolExecutor(2) as threads:
        for one, other in ((0, 1), (0, 3), (2, 1), (2, 3)):
            together = list(threads.map(run, [jobs[one], jobs[other]]))
            torch.testing.assert_close(together[0], alone[one], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(together[1], alone[other], rtol=1e-5, atol=1e-5)


def test_arguments_from_a_configuration():
    group = backbone_options(feature_norm="none")
    assert with_proxy(group, PROXY) == group | {"proxy": PROXY}
    assert with_proxy(group, BY_SAM) == group | {"proxy": BY_SAM}
    assert with_proxy(group, dict.fromkeys(PROXY)) == group | {"proxy": None}
    assert "proxy" not in group


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"features": "proxy"}, ["backbone.features=proxy", "proxy=NAME"]),
        *(
            ({"features": features, "proxy": PROXY}, ["proxy=other", f"not {features}"])
            for features in ("last", "value", "self")
        ),
        (
            {"features": "proxy", "proxy": PROXY, "timm_name": CNN},
            ["backbone.features=proxy", f"use last for {CNN}"],
        ),
        ({"features": "proxy", "proxy": BY_SAM, "timm_name": CNN}, ["backbone.features=proxy", "use last"]),
    ],
    ids=["no proxy", "last", "value", "self", "cnn", "cnn by sam"],
)
def test_proxies_that_do_not_go_together(changes, parts):
    refused(lambda: make_backbone(**changes), *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"weights": "nowhere.pth"}, ["proxy.weights=nowhere.pth does not exist"]),
        ({"weights": "."}, ["proxy.weights=. holds no other{"]),
        ({"timm_name": "vit_smal_patch16_224"}, ["vit_small_patch16_224"]),
        ({"features": "slef"}, ["proxy.features=slef", "self"]),
        ({"features": "proxy"}, ["proxy.features=proxy"]),
        ({"features": "self", "timm_name": CNN}, ["proxy.features=self", f"use last for {CNN}"]),
    ],
    ids=["missing file", "folder without it", "name", "features", "proxy of a proxy", "self of a cnn"],
)
def test_proxies_that_cannot_be_made(changes, parts, tmp_path, monkeypatch):
    """The setting is named that is wrong: that of the proxy."""
    monkeypatch.chdir(tmp_path)
    message = refused(lambda: make_backbone(features="proxy", proxy=PROXY | changes), "proxy=other: ", *parts)
    assert "backbone.weights" not in message and "backbone.features" not in message


# Maps before the norm and the head --------------------------------------------------------------------------------


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("name", VITS)
def test_finished_maps_are_the_patches(name, features, project):
    options = {"timm_name": name, "project": project}
    backbone = proxied(**options) if features == "proxy" else backbone_of(name, features, project)
    images = photo(48, 64, count=2)
    maps, expected = backbone.patch_map(images), backbone(images)
    assert maps.shape == (2, MODELS[name][1], 3, 4) and expected.grid == (3, 4)
    rows = torch.stack([maps[:, :, y, x] for y in range(3) for x in range(4)], dim=1)
    torch.testing.assert_close(backbone.finish(rows), expected.patches, rtol=1e-5, atol=1e-5)


def test_finished_maps_of_models_without_tokens(named):
    name, backbone = named
    images = photo(2 * backbone.stride, 3 * backbone.stride)
    maps, expected = backbone.patch_map(images), backbone(images)
    assert maps.shape == (1, MODELS[name][1], 2, 3)
    rows = torch.stack([maps[:, :, y, x] for y in range(2) for x in range(3)], dim=1)
    torch.testing.assert_close(backbone.finish(rows), expected.patches, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("features", FEATURES)
def test_finished_maps_of_half_precision(features):
    """What was made of maps in float32 is finished in the dtype of the weights."""
    backbone = proxied() if features == "proxy" else backbone_of(TINY_VIT, features, False)
    backbone.use_precision("bf16-mixed")
    images = photo(48, 64)
    maps = backbone.patch_map(images)
    found = backbone.finish(maps.float().flatten(2).mT)
    assert maps.dtype == found.dtype == torch.bfloat16
    torch.testing.assert_close(found, backbone(images).patches, rtol=1e-2, atol=1e-2)


# Weights ----------------------------------------------------------------------------------------------------------


def full_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights as a published file has them, classifier included."""
    torch.manual_seed(seed)
    return shaken(timm.create_model(TINY_VIT), seed).state_dict()


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested", "folder", "folder of pt"])
def test_local_weights(form, tmp_path):
    state = full_weights()
    path = {
        "safetensors": "any.safetensors",
        "pth": "any.pth",
        "nested": "any.pth",
        "folder": "tiny.safetensors",
        "folder of pt": "tiny.pt",
    }[form]
    if path.endswith("safetensors"):
        save_file(state, tmp_path / path)
    else:
        torch.save({"state_dict": state} if form == "nested" else state, tmp_path / path)
    given = str(tmp_path if form.startswith("folder") else tmp_path / path)
    backbone = make_backbone(weights=given)
    assert backbone.weights_file == tmp_path / path
    loaded = backbone.model.state_dict()
    assert set(loaded) == {key for key in state if not key.startswith("head.")}
    for key, value in loaded.items():
        assert torch.equal(value, state[key]), key
    projecting = make_backbone(weights=given, project=True).model.state_dict()
    assert set(projecting) == set(state)
    assert torch.equal(projecting["head.weight"], state["head.weight"])


def test_weights_of_a_cnn(tmp_path):
    name = "test_resnet.r160_in1k"
    state = shaken(timm.create_model(name)).state_dict()
    save_file(state, tmp_path / "cnn.safetensors")
    loaded = make_backbone(timm_name=name, weights=str(tmp_path / "cnn.safetensors")).model.state_dict()
    assert len(loaded) == len(state) - 2  # the classifier
    for key, value in loaded.items():
        assert torch.equal(value, state[key]), key


def test_random_weights_are_no_file():
    assert make_backbone().weights_file is None


def test_fingerprint_tells_weights_apart(tmp_path):
    state = full_weights()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    changed = {key: value.clone() for key, value in state.items()}
    changed["blocks.3.mlp.fc1.bias"][5] += 1e-6
    save_file(changed, tmp_path / "c.safetensors")
    swapped = state | {"norm.weight": state["norm.bias"], "norm.bias": state["norm.weight"]}
    torch.save(swapped, tmp_path / "d.pth")
    a, b, c, d = (make_backbone(weights=str(tmp_path / name)).fingerprint
                  for name in ("a.safetensors", "b.pth", "c.safetensors", "d.pth"))  # fmt: skip
    assert a == b
    assert len({a, c, d}) == 3


class _Payload:
    """What an attacker's pickle does when it is loaded: makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_not_run(tmp_path):
    trace = tmp_path / "was run"
    torch.save({"state_dict": full_weights(), "extra": _Payload(trace)}, tmp_path / "evil.pth")
    message = refused(lambda: make_backbone(weights=str(tmp_path / "evil.pth")), "evil.pth", TINY_VIT)
    assert "weights_only" in message
    assert not trace.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)  # the file does what it says
    assert trace.is_dir()


def broken(kind: str, folder):
    """Arguments of a backbone that cannot be made, and what the message must say."""
    file = folder / "weights.pth"
    if kind == "missing file":
        return {"weights": str(file)}, [f"backbone.weights={file}", "does not exist"]
    if kind == "folder without it":
        (folder / "other.pth").write_bytes(b"")
        return {"weights": str(folder)}, [str(folder), "holds no tiny", ".safetensors", ".pth"]
    if kind == "other shapes":
        torch.save(full_weights(), file)
        return {"timm_name": "vit_tiny_patch16_224", "weights": str(file)}, [str(file), "vit_tiny_patch16_224", "fit"]
    if kind == "no weights":
        file.write_bytes(b"these are no weights")
        return {"weights": str(file)}, [str(file)]
    if kind == "no tensors":
        torch.save([1, 2, 3], file)
        return {"weights": str(file)}, [str(file)]
    if kind == "half a file":
        torch.save(full_weights(), file)
        file.write_bytes(file.read_bytes()[:50_000])
        return {"weights": str(file)}, [str(file)]
    unknown = {
        "name": ({"timm_name": "vit_smal_patch16_224"}, ["vit_smal_patch16_224", "vit_small_patch16_224"]),
        "features": ({"features": "slef"}, ["backbone.features=slef", "self", "value"]),
        "self of a cnn": (
            {"timm_name": "test_resnet.r160_in1k", "features": "self"},
            ["backbone.features=self", "last", "test_resnet"],
        ),
        "size": ({"image_size": 70}, ["70", "16", "64", "80", "tiny"]),
        "size of a cnn": ({"timm_name": "test_resnet.r160_in1k", "image_size": 48}, ["48", "32", "64"]),
        "no size": ({"image_size": 0}, ["image size 0", "16"]),
    }
    return unknown[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("missing file", "folder without it", "other shapes", "no weights", "no tensors", "half a file", "name"),
        *("features", "self of a cnn", "size", "size of a cnn", "no size"),
    ],
)
def test_refused(kind, tmp_path):
    arguments, parts = broken(kind, tmp_path)
    refused(lambda: make_backbone(**arguments), *parts)


def test_check_size_of_both_sides():
    backbone = make_backbone()
    backbone.check_size(16, 4096)
    refused(lambda: backbone.check_size(32, 40), "40", "32", "48")
    refused(lambda: backbone.check_size(8, 32), "8", "16")


@pytest.mark.parametrize("kind", ["lacks a block", "other model", "empty", "other names"])
def test_weights_that_do_not_cover_the_model(kind, tmp_path):
    file = tmp_path / "weights.pth"
    state, name = full_weights(), TINY_VIT
    if kind == "lacks a block":
        state = {key: value for key, value in state.items() if not key.startswith("blocks.5.")}
    elif kind == "other model":
        name = "test_resnet.r160_in1k"
    elif kind == "empty":
        state = {}
    else:
        state = {f"backbone.{key}": value for key, value in state.items()}
    torch.save(state, file)
    refused(lambda: make_backbone(timm_name=name, weights=str(file)), str(file), "fit")


def test_unknown_tag():
    refused(lambda: make_backbone(timm_name="test_vit.nonsense"), "test_vit.nonsense")


def test_unknown_name_with_nothing_near_it():
    refused(lambda: make_backbone(timm_name="zzzzzz"), "zzzzzz")


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_efficientnet.r160_in1k", "test_convnext.r160_in1k"])
def test_projection_of_a_model_without_a_plain_head(name):
    with pytest.raises(InputError, match="project"):
        make_backbone(timm_name=name, project=True)


@pytest.mark.parametrize("name", ["pit_ti_224", "xcit_nano_12_p16_224", "mixer_s32_224"])
def test_models_that_are_not_understood(name):
    refused(lambda: make_backbone(timm_name=name, image_size=224), name)


def test_class_token_is_the_class_token():
    backbone = make_backbone(timm_name="vit_small_patch16_dinov3.lvd1689m")
    shaken(backbone.model, amount=0.02)
    images = photo(32, 32)
    with torch.no_grad():
        token = backbone.model.forward_features((images / 255 - backbone.mean) / backbone.std)[:, 0]
    torch.testing.assert_close(backbone(images).cls, token, rtol=1e-3, atol=1e-3)


def test_models_of_a_fixed_size_say_so():
    backbone = make_backbone(timm_name="cait_xxs24_224", image_size=224)
    refused(lambda: backbone(photo(48, 48)), "224")


AVERAGES = {TINY_VIT: False, "test_vit2.r160_in1k": True, "test_vit3.r160_in1k": False, "test_resnet.r160_in1k": True}


@pytest.mark.parametrize(("name", "averages"), AVERAGES.items())
def test_whose_global_feature_is_the_mean_of_its_patches(name, averages):
    backbone = make_backbone(timm_name=name, image_size=160)
    shaken(backbone.model, amount=0.02)
    found = backbone(photo(160, 160))
    assert backbone.averages == averages
    mean = torch.nn.functional.cosine_similarity(found.patches.mean(dim=1), found.cls).item()
    assert (mean > 0.9) == averages
