"""CLIP's own text tower as a model folder, against transformers and open_clip on random weights of their layouts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip import CLIP, CustomTextCLIP, get_tokenizer
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import data_prep.clip as program
from data_prep.clip import ClipSettings, make_folder
from data_prep.clip_text import OPEN_CLIP_CONFIG, OPEN_CLIP_FILE, read_text_tower
from simzss.models.build import build_untrained
from simzss.models.checkpoint import load_model
from simzss.models.tokenizer import clip_tokenizer
from simzss.segmentation.segmenter import Segmenter
from tests.support.models import backbone_settings, encode_alone, refused, save_backbone, save_bert, shaken
from tests.support.program import exit_code

CAPTIONS = ["a photo of a cat.", "two dogs", "", "A green tree, and grass; it is here!", " ".join(["word"] * 40)]
POSITIONS = 24  # fewer than the last caption has tokens, so that truncation is met too
COMMON = 1000  # the head of timm's test model
VISION = 64  # its channels


def text_config(act: str = "quick_gelu") -> CLIPTextConfig:
    tokenizer = clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        projection_dim=COMMON,
        hidden_act=act,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def make_clip(act: str = "quick_gelu") -> CLIPModel:
    torch.manual_seed(0)
    vision = {"hidden_size": VISION, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16, "projection_dim": COMMON}
    config = CLIPConfig(text_config=text_config(act).to_dict(), vision_config=vision, projection_dim=COMMON)
    model = CLIPModel(config)
    shaken(model)
    return model.eval()


@pytest.fixture(scope="module")
def image_weights(tmp_path_factory) -> Path:
    """A weights file of the tiny backbone, its head included."""
    return save_backbone(tmp_path_factory.mktemp("weights") / "tiny.safetensors", project=True)


@pytest.fixture(scope="module")
def clip_folder(image_weights, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("transformers") / "clip"
    model = make_clip()
    with torch.no_grad():  # of the towers of one CLIP, this is the part that is in both files
        model.visual_projection.weight.copy_(load_file(image_weights)["head.weight"])
    model.save_pretrained(folder)
    return folder


OPEN_TEXT = {"context_length": POSITIONS, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2}
# timm's vit_xsmall_patch16_clip_224, the smallest image tower of CLIP's shape that timm has
OPEN_VISION = {"image_size": 224, "layers": 10, "width": 256, "head_width": 64, "patch_size": 16}
OPEN_COMMON = 512  # of that tower
XSMALL = {"name": "xsmall", "timm_name": "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", "image_size": 224}


def make_open_clip(kind: type = CLIP, quick: bool = False, **text: object) -> torch.nn.Module:
    torch.manual_seed(1)
    model = kind(OPEN_COMMON, OPEN_VISION, OPEN_TEXT | text, quick_gelu=quick)
    return shaken(model, amount=0.05).eval()


def save_open_clip(model: torch.nn.Module, folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / OPEN_CLIP_FILE)
    if config:
        (folder / OPEN_CLIP_CONFIG).write_text(json.dumps({"model_cfg": config}), encoding="utf-8")
    return folder / OPEN_CLIP_FILE


@pytest.fixture(scope="module")
def open_model() -> torch.nn.Module:
    return make_open_clip()


@pytest.fixture(scope="module")
def open_file(open_model, tmp_path_factory) -> Path:
    return save_open_clip(open_model, tmp_path_factory.mktemp("open_clip"))


def settings_of(text, output, weights, quick_gelu=None, **changes):
    """A ViT with a head of `COMMON` outputs beside the text tower."""
    options = {"features": "self", "project": True, "feature_norm": "center", "weights": str(weights)} | changes
    return ClipSettings(backbone=backbone_settings(**options), text=str(text), output=output, quick_gelu=quick_gelu)


def made(folder, text, weights, quick_gelu=None, **changes):
    """Make a folder and load it."""
    make_folder(settings_of(text, folder, weights, quick_gelu, **changes))
    return load_model(folder)


def pooled(model, texts=CAPTIONS):
    return F.normalize(model.text_encoder.encode(texts)[0], dim=-1)


def expected_of_transformers(model, texts=CAPTIONS):
    tokens = clip_tokenizer()(texts, truncation=True, max_length=POSITIONS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        found = model.get_text_features(**tokens)
    return F.normalize(getattr(found, "pooler_output", found), dim=-1)


def expected_of_open_clip(model, texts=CAPTIONS):
    with torch.no_grad():
        return model.encode_text(get_tokenizer("ViT-B-16", context_length=POSITIONS)(texts), normalize=True)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# The same vectors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [None, True, False])
def test_transformers_folder(clip_folder, image_weights, tmp_path, quick):
    model = made(tmp_path / "model", clip_folder, image_weights, quick)
    reference = make_clip("gelu" if quick is False else "quick_gelu")
    close(pooled(model), expected_of_transformers(reference))
    assert model.logit_scale.item() == pytest.approx(reference.logit_scale.item())
    assert model.feature_norm.mode == "none" and model.backbone.features == "self" and model.backbone.project
    assert (model.text_pooling, model.info["steps"], model.info["text_weights"]) == ("sentence", 0, str(clip_folder))


def test_text_tower_alone_in_float16_and_in_two_files(image_weights, tmp_path):
    source = make_clip()
    alone = CLIPTextModelWithProjection(source.config.text_config)
    alone.load_state_dict({name: value for name, value in source.state_dict().items() if name in alone.state_dict()})
    alone.half().save_pretrained(tmp_path / "text", max_shard_size="2MB")
    assert len(list((tmp_path / "text").glob("*.safetensors"))) > 1
    lines = make_folder(settings_of(tmp_path / "text", tmp_path / "model", image_weights))
    assert any("no logit scale" in line for line in lines) and any("no image tower" in line for line in lines)
    model = load_model(tmp_path / "model")
    assert model.logit_scale.exp().item() == pytest.approx(100)
    source.load_state_dict({name: value.half().float() for name, value in source.state_dict().items()})
    close(pooled(model), expected_of_transformers(source))


def test_open_clip_file(open_model, open_file, tmp_path):
    """Heads by the width, activation by the backbone; and one file gives both towers."""
    model = made(tmp_path / "model", open_file, open_file, **XSMALL, features="last")
    close(pooled(model), expected_of_open_clip(open_model))
    assert model.logit_scale.item() == pytest.approx(open_model.logit_scale.item())
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = open_model.encode_image((images - model.backbone.mean) / model.backbone.std, normalize=True)
        close(model.encode_image(images).cls, reference)


@pytest.mark.parametrize(
    ("kind", "quick", "heads"),
    [(CLIP, True, 2), (CLIP, False, 8), (CustomTextCLIP, True, 4), (CustomTextCLIP, False, None)],
)
def test_open_clip_folder_with_its_configuration(tmp_path, kind, quick, heads):
    source = make_open_clip(kind, quick, heads=heads or 8)  # open_clip's default
    text = {key: value for key, value in OPEN_TEXT.items() if key != "heads"} | ({"heads": heads} if heads else {})
    save_open_clip(source, tmp_path / "clip", vision_cfg=OPEN_VISION, text_cfg=text, quick_gelu=quick)
    tower = read_text_tower(str(tmp_path / "clip"), otherwise=not quick)
    found = program.build_encoder(tower).encode(CAPTIONS)[0]
    close(F.normalize(found, dim=-1), expected_of_open_clip(source))
    assert torch.equal(tower.image_projection, source.visual.proj.T)


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
def test_hub_repository(layout, clip_folder, open_file, tmp_path, monkeypatch):
    """As an earlier download left it: the hub client reads its own cache where there is no network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    for file in clip_folder.iterdir() if layout == "transformers" else [open_file]:
        (snapshot / file.name).symlink_to(file)
    if layout == "open_clip":
        config = {"model_cfg": {"text_cfg": OPEN_TEXT, "quick_gelu": True}}
        (snapshot / OPEN_CLIP_CONFIG).write_text(json.dumps(config))
    config = read_text_tower("owner/name").body.config
    assert (config.hidden_size, config.hidden_act) == (32 if layout == "transformers" else 128, "quick_gelu")
    refused(lambda: read_text_tower("owner/other"), "text=owner/other", "hub")


# The program ----------------------------------------------------------------------------------------------------------


def test_program(clip_folder, image_weights, tmp_path, monkeypatch, capsys):
    backbone = settings_of("", tmp_path, image_weights).backbone.plain()
    del backbone["feature_norm"]
    arguments = [f"text={clip_folder}", f"output={tmp_path / 'm'}", *(f"backbone.{k}={v}" for k, v in backbone.items())]
    assert exit_code(program.main, arguments, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'm'}: text tower of 2 layers, 32 channels, quick_gelu, beside tiny" in printed
    assert "note: the text tower has quick_gelu" in printed  # timm's test model has no such word in its name
    model = load_model(tmp_path / "m")
    close(pooled(model), expected_of_transformers(make_clip()))
    assert exit_code(program.main, [*arguments, "quick_gelu=false"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "32 channels, gelu, beside tiny" in printed and "note" not in printed
    assert exit_code(program.main, [*arguments, "backbone.feature_norm=whiten"], monkeypatch) == 2
    assert "backbone.feature_norm=whiten" in capsys.readouterr().err


def test_use(clip_folder, image_weights, tmp_path):
    """Such a folder segments, and tells how it was before training."""
    model = made(tmp_path / "model", clip_folder, image_weights)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    mask = Segmenter(model, precision="32-true").predict(pixels, ["cat", "green grass"]).mask
    assert mask.shape == (48, 80) and set(mask.unique().tolist()) <= {0, 1}
    untrained = build_untrained(model)
    assert encode_alone(untrained.text_encoder, "a cat")[1].pooled.shape == (1, COMMON)


# Errors ---------------------------------------------------------------------------------------------------------------


def damaged(source: Path, target: Path, change) -> Path:
    """A copy of a transformers folder or an open_clip file with changed tensors."""
    target.mkdir()
    file = source / "model.safetensors" if source.is_dir() else source
    state = load_file(file)
    change(state)
    save_file({name: value.contiguous() for name, value in state.items()}, target / file.name)
    if source.is_dir():
        (target / "config.json").write_bytes((source / "config.json").read_bytes())
        return target
    return target / file.name


def test_towers_of_two_models(clip_folder, open_file, image_weights, tmp_path):
    refused(lambda: made(tmp_path / "m", open_file, image_weights), f"text={open_file}", "512", "1000", "tiny")
    other = damaged(open_file, tmp_path / "other", lambda state: state["visual.proj"].neg_())
    refused(lambda: made(tmp_path / "m", open_file, other, **XSMALL), f"text={open_file}", str(other), "differ")
    refused(lambda: made(tmp_path / "m", clip_folder, image_weights, project=False), "backbone.project=false", "tiny")
    assert not (tmp_path / "m").exists()

    def round_all(state):
        state |= {name: value.bfloat16() for name, value in state.items()}

    made(tmp_path / "m", damaged(open_file, tmp_path / "rounded", round_all), open_file, **XSMALL)
    (tmp_path / "file").touch()
    refused(lambda: made(tmp_path / "file", clip_folder, image_weights), f"output={tmp_path / 'file'}")


@pytest.mark.parametrize(
    ("layout", "name", "value"),
    [
        ("transformers", "text_model.encoder.layers.1.mlp.fc1.bias", None),
        ("transformers", "text_projection.weight", None),
        ("transformers", "text_model.final_layer_norm.weight", torch.ones(7)),
        ("open_clip", "transformer.resblocks.1.attn.in_proj_bias", None),
        ("open_clip", "transformer.resblocks.0.attn.in_proj_weight", torch.ones(96, 128)),
        ("open_clip", "token_embedding.weight", None),
        ("open_clip", "token_embedding.weight", torch.ones(1000, 128)),
        ("open_clip", "positional_embedding", torch.ones(24)),
        ("open_clip", "text_projection", None),
        ("open_clip", "text_projection", torch.ones(32, 512)),
        ("open_clip", "cls_emb", torch.ones(96)),
        ("open_clip", "logit_bias", torch.ones(1)),
        ("open_clip", "transformer.resblocks.0.ls_1.gamma", torch.ones(96)),
    ],
)
def test_tensors_that_do_not_fit(layout, name, value, clip_folder, open_file, tmp_path):
    def change(state):
        del state[name]

    source = clip_folder if layout == "transformers" else open_file
    path = damaged(source, tmp_path / "d", change if value is None else lambda state: state.update({name: value}))
    refused(lambda: read_text_tower(str(path)), str(path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ({"width": 256}, "size mismatch"),
        ({"layers": 3}, "Missing key"),
        ({"heads": 3}, "heads (3)"),
        ({"heads": "two"}, "two"),
        ({"no_causal_mask": True}, "text_cfg.no_causal_mask=True"),
        ({"pool_type": "last"}, "text_cfg.pool_type=last"),
        ({"hf_model_name": "roberta-base"}, "text_cfg.hf_model_name=roberta-base"),
        ({"tokenizer_kwargs": {"clean": "canonicalize"}}, "text_cfg.tokenizer_kwargs"),
        ({"of_another_release": 1}, "of_another_release"),
        (None, "text_cfg"),
        (3, "text_cfg"),
    ],
)
def test_open_clip_configurations_of_other_towers(open_file, tmp_path, text, says):
    (tmp_path / OPEN_CLIP_FILE).symlink_to(open_file)
    config = {"model_cfg": {"text_cfg": OPEN_TEXT | text} if isinstance(text, dict) else text}
    (tmp_path / OPEN_CLIP_CONFIG).write_text(json.dumps(config), encoding="utf-8")
    refused(lambda: read_text_tower(str(tmp_path)), str(tmp_path), says)


@pytest.mark.parametrize("kind", ["bert", "no projection", "activation", "broken config", "pickle", "empty"])
def test_folders_that_are_no_clip(clip_folder, tmp_path, kind):
    folder = tmp_path / "m"
    if kind == "bert":
        save_bert(folder)
    elif kind == "no projection":
        CLIPTextModel(text_config()).save_pretrained(folder)
    else:
        damaged(clip_folder, folder, lambda state: None)
    if kind == "activation":
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["text_config"]["hidden_act"] = "gelluu"
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    elif kind == "broken config":
        (folder / "config.json").write_text("{", encoding="utf-8")
    elif kind == "pickle":  # never read, even though it is there
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        refused(lambda: read_text_tower(str(folder / "pytorch_model.bin")), "pytorch_model.bin is no .safetensors file")
    elif kind == "empty":
        (folder / "config.json").unlink()
    refused(lambda: read_text_tower(str(folder)), str(folder), {"activation": "gelluu"}.get(kind, ""))


@pytest.mark.parametrize("name", ["{folder}/none", "here/none.safetensors", "a/b/c", "none", "{folder}/x.safetensors"])
def test_files_that_are_missing_or_broken(tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    name = name.format(folder=tmp_path)
    refused(lambda: read_text_tower(name), name)
