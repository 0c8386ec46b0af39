import copy
import math
import os

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DiffAttention
from timm.models.vision_transformer import Block, ResPostBlock

from simzss.errors import InputError
from simzss.models.backbone import Backbone, supports_dense
from simzss.models.dense import dense_last_block
from tests.support.models import TINY_VIT, make_backbone, refused, shaken

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


def linear(weights: dict[str, torch.Tensor], name: str, rows: torch.Tensor) -> torch.Tensor:
    out = rows @ weights[f"{name}.weight"].T
    return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out


def layer_norm(weights: dict[str, torch.Tensor], name: str, rows: torch.Tensor, eps: float) -> torch.Tensor:
    if f"{name}.weight" not in weights:
        return rows
    centred = rows - rows.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


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


def dense_by_loop(backbone: Backbone, images: torch.Tensor, mode: str) -> torch.Tensor:
    """Dense patches (N, D) of one image, in float64, from the input of the last block on."""
    model = copy.deepcopy(backbone.model).double()
    seen: list[torch.Tensor] = []
    model.blocks[-1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    pixels = (images.double() / 255 - backbone.mean.double()) / backbone.std.double()
    with torch.no_grad():
        model.forward_features(pixels)
    weights = dict(model.blocks[-1].state_dict())
    out = attention_by_loop(weights, seen[0][0], model.blocks[-1].attn.num_heads, mode, model.blocks[-1].norm1.eps)
    final = {f"norm.{key}": value for key, value in model.norm.state_dict().items()}
    out = layer_norm(final, "norm", out, getattr(model.norm, "eps", 0.0))
    pooled = {f"fc_norm.{key}": value for key, value in model.fc_norm.state_dict().items()}
    out = layer_norm(pooled, "fc_norm", out, getattr(model.fc_norm, "eps", 0.0))
    if backbone.project:
        out = linear({f"head.{key}": value for key, value in model.head.state_dict().items()}, "head", out)
    return out[model.num_prefix_tokens :]


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
    last, value, own = (backbone_of(name, features, project)(images).cls for features in ("last", "value", "self"))
    torch.testing.assert_close(value, last, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own, last, rtol=1e-5, atol=1e-5)


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
