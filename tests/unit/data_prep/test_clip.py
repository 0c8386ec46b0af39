"""CLIP's own text tower as a model folder, against transformers and open_clip on random weights of their layouts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip import CLIP, CustomTextCLIP, get_tokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import data_prep.clip as program
from data_prep.clip import ClipSettings, make_folder
from data_prep.clip_text import OPEN_CLIP_CONFIG, OPEN_CLIP_FILE, read_text_tower
from simzss.cli import dispatch
from simzss.config import compose
from simzss.evaluation.run import run_evaluation
from simzss.models.checkpoint import load_model
from simzss.models.tokenizer import clip_tokenizer
from simzss.segmentation.segmenter import Segmenter
from tests.support.models import backbone_options, refused, save_backbone, save_bert, shaken
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


def backbone_of(weights, **changes):
    """The group `backbone` of a configuration: a ViT with a head of `COMMON` outputs."""
    return backbone_options(features="self", project=True, feature_norm="center", weights=str(weights)) | changes


def made(folder: Path, text: Path | str, weights: Path | str, quick_gelu: bool | None = None, **changes):
    """Model and settings of a folder that the program makes."""
    make_folder(backbone_of(weights, **changes), ClipSettings(str(text), str(folder), quick_gelu))
    return load_model(folder)


def pooled(model, texts=CAPTIONS):
    """Our vectors of padded texts; behind its end a text has junk, which must not matter."""
    rows = model.text_encoder.tokenize(texts)["input_ids"]
    length = max(map(len, rows))
    ids = torch.tensor([row + [320] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    with torch.no_grad():
        return model.encode_text(ids, mask).pooled


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


# The same vectors -------------------------------------------------------------------------------------------------


def test_text_of_a_transformers_folder(clip_folder, image_weights, tmp_path):
    model, settings = made(tmp_path / "model", clip_folder, image_weights)
    reference = CLIPModel.from_pretrained(clip_folder).eval()
    close(pooled(model), expected_of_transformers(reference))
    assert model.logit_scale.item() == pytest.approx(reference.logit_scale.item())
    assert model.feature_norm.mode == "none" and model.backbone.features == "self" and model.backbone.project
    assert (settings["readout"], settings["steps"], settings["text_weights"]) == ("sentence", 0, str(clip_folder))


@pytest.mark.parametrize("quick", [True, False])
def test_the_activation_can_be_set(clip_folder, image_weights, tmp_path, quick):
    model, _ = made(tmp_path / "model", clip_folder, image_weights, quick_gelu=quick)
    reference = make_clip("quick_gelu" if quick else "gelu")
    close(pooled(model), expected_of_transformers(reference))
    other = make_clip("gelu" if quick else "quick_gelu")
    assert (pooled(model) - expected_of_transformers(other)).abs().max() > 1e-4


def test_text_tower_alone_in_float16_and_in_two_files(image_weights, tmp_path):
    source = make_clip()
    alone = CLIPTextModelWithProjection(source.config.text_config)
    state = {name: value for name, value in source.state_dict().items() if name in alone.state_dict()}
    alone.load_state_dict(state)
    alone.half().save_pretrained(tmp_path / "text", max_shard_size="2MB")
    assert len(list((tmp_path / "text").glob("*.safetensors"))) > 1
    lines = make_folder(backbone_of(image_weights), ClipSettings(str(tmp_path / "text"), str(tmp_path / "model")))
    assert any("no logit scale" in line for line in lines) and any("no image tower" in line for line in lines)
    model, _ = load_model(tmp_path / "model")
    assert model.logit_scale.exp().item() == pytest.approx(100)
    rounded = make_clip()
    rounded.load_state_dict({name: value.half().float() for name, value in rounded.state_dict().items()})
    close(pooled(model), expected_of_transformers(rounded))


def test_text_of_an_open_clip_file(open_model, open_file, tmp_path):
    """Heads by the width, activation by the backbone; and one file gives both towers."""
    model, _ = made(tmp_path / "model", open_file, open_file, **XSMALL, features="last")
    close(pooled(model), expected_of_open_clip(open_model))
    assert model.logit_scale.item() == pytest.approx(open_model.logit_scale.item())
    assert model.backbone.width == OPEN_COMMON

    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = open_model.encode_image((images - model.backbone.mean) / model.backbone.std, normalize=True)
        close(model.encode_image(images).cls, reference)


@pytest.mark.parametrize(
    ("kind", "quick", "heads"),
    [(CLIP, True, 2), (CLIP, False, 4), (CustomTextCLIP, True, 4), (CustomTextCLIP, False, 2)],
)
def test_text_of_an_open_clip_folder_with_its_configuration(tmp_path, kind, quick, heads):
    source = make_open_clip(kind, quick, heads=heads)
    config = {"embed_dim": OPEN_COMMON, "vision_cfg": OPEN_VISION, "text_cfg": OPEN_TEXT | {"heads": heads}}
    save_open_clip(source, tmp_path / "clip", **config, quick_gelu=quick)
    tower = read_text_tower(str(tmp_path / "clip"), otherwise=not quick)
    with torch.no_grad():
        tokens = torch.tensor(clip_tokenizer()(CAPTIONS[0])["input_ids"])[None]
        found = tower.body(input_ids=tokens).last_hidden_state[:, -1] @ tower.projection.T
    close(F.normalize(found, dim=-1), expected_of_open_clip(source, CAPTIONS[:1]))
    assert torch.equal(tower.image_projection, source.visual.proj.T)


def test_heads_that_the_configuration_leaves_out_are_open_clip_s(tmp_path):
    text = {key: value for key, value in OPEN_TEXT.items() if key != "heads"}
    source = make_open_clip(heads=8)
    file = save_open_clip(source, tmp_path, text_cfg=text)
    assert read_text_tower(str(file)).body.config.num_attention_heads == 8


# What the folder is good for --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(clip_folder, image_weights, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "model"
    made(folder, clip_folder, image_weights)
    return folder


def test_segments(folder):
    segmenter = Segmenter.from_pretrained(folder, precision="32-true")
    segmenter.set_classes(["cat", "green grass"])
    assert segmenter.readout == "sentence"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    mask = segmenter.predict(pixels).mask
    assert mask.shape == (48, 80) and set(mask.unique().tolist()) <= {0, 1}


def test_segment_verb(folder, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(photo)
    dispatch(["segment", str(photo), f"model={folder}", "classes=cat,dog", f"output_dir={tmp_path / 'out'}",
              "precision=32-true", "protocol.short_side=64"])  # fmt: skip
    with Image.open(tmp_path / "out" / "photo_mask.png") as mask:
        assert mask.size == (64, 40)


def test_eval_verb_with_the_untrained_tower_beside(folder, tmp_path):
    _voc(tmp_path / "voc" / "VOC2012")
    config = compose("eval", ["benchmark=voc20", f"benchmark.root={tmp_path / 'voc'}", f"model={folder}",
                              f"output_dir={tmp_path / 'out'}", "compare_untrained=true", "engineered=false",
                              "precision=32-true", "protocol.short_side=64", "protocol.templates=photo", "overlays=0",
                              "num_workers=0"])  # fmt: skip
    results = run_evaluation(config)
    assert set(results) == {"voc20", "voc20_untrained"}
    assert results["voc20"]["protocol"]["readout"] == "sentence"


def _voc(root: Path) -> None:
    """Two photos with masks in the layout of PASCAL VOC."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(generator.integers(0, 21, (64, 64), dtype=np.uint8))
        mask.save(root / "SegmentationClass" / f"{name}.png")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\n", encoding="utf-8")


def program_arguments(text, output, weights, *more):
    options = backbone_of(weights)
    del options["feature_norm"]
    return [f"text={text}", f"output={output}", *(f"backbone.{key}={value}" for key, value in options.items()), *more]


def test_program(clip_folder, image_weights, tmp_path, monkeypatch, capsys):
    assert exit_code(program.main, program_arguments(clip_folder, tmp_path / "model", image_weights), monkeypatch) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'model'}: text tower of 2 layers, 32 channels, quick_gelu, beside tiny" in printed
    assert "note: the text tower has quick_gelu" in printed  # timm's test model has no such word in its name
    model, _ = load_model(tmp_path / "model")
    close(pooled(model), expected_of_transformers(CLIPModel.from_pretrained(clip_folder).eval()))


def test_program_with_an_activation(clip_folder, image_weights, tmp_path, monkeypatch, capsys):
    more = ("quick_gelu=false", "backbone.feature_norm=none")
    arguments = program_arguments(clip_folder, tmp_path / "model", image_weights, *more)
    assert exit_code(program.main, arguments, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "32 channels, gelu, beside tiny" in printed and "note" not in printed


def test_help(monkeypatch, capsys):
    assert exit_code(program.main, ["--help"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "quick_gelu" in printed and "backbone: clip_vitb16" in printed


def test_hub_repositories_of_both_layouts(clip_folder, open_file, tmp_path, monkeypatch):
    """As an earlier download left them: the hub client reads its own cache where there is no network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, files in (("a", list(clip_folder.iterdir())), ("b", [open_file])):
        repository = tmp_path / f"models--owner--{name}"
        snapshot = repository / "snapshots" / ("0" * 40)
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        snapshot.mkdir(parents=True)
        for file in files:
            (snapshot / file.name).symlink_to(file)
    (snapshot / OPEN_CLIP_CONFIG).write_text(json.dumps({"model_cfg": {"text_cfg": OPEN_TEXT, "quick_gelu": True}}))
    assert read_text_tower("owner/a").body.config.hidden_size == 32
    tower = read_text_tower("owner/b")
    assert (tower.body.config.hidden_size, tower.body.config.hidden_act) == (128, "quick_gelu")
    refused(lambda: read_text_tower("owner/c"), "text=owner/c", "hub")


# What is refused --------------------------------------------------------------------------------------------------


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


def test_vectors_of_another_width(open_file, image_weights, tmp_path):
    message = refused(lambda: made(tmp_path / "m", open_file, image_weights), "not of one CLIP")
    assert f"text={open_file} gives 512 channels" in message and "tiny gives 1000" in message
    assert not (tmp_path / "m").exists()


def test_text_of_another_image_tower(open_file, tmp_path):
    other = damaged(open_file, tmp_path / "other", lambda state: state["visual.proj"].neg_())
    message = refused(lambda: made(tmp_path / "m", open_file, other, **XSMALL), "projections differ")
    assert f"text={open_file}" in message and str(other) in message

    def round_all(state):
        state |= {name: value.bfloat16() for name, value in state.items()}

    rounded = damaged(open_file, tmp_path / "rounded", round_all)
    made(tmp_path / "m", rounded, open_file, **XSMALL)


def test_backbone_without_projection(clip_folder, image_weights, tmp_path):
    refused(lambda: made(tmp_path / "m", clip_folder, image_weights, project=False), "backbone.project=false", "tiny")


def test_statistics_of_features(clip_folder, image_weights, tmp_path, monkeypatch, capsys):
    arguments = program_arguments(clip_folder, tmp_path / "m", image_weights, "backbone.feature_norm=whiten")
    assert exit_code(program.main, arguments, monkeypatch) == 2
    assert capsys.readouterr().err.startswith("error: backbone.feature_norm=whiten")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("text_model.encoder.layers.1.mlp.fc1.bias", "lacks text_model.encoder.layers.1.mlp.fc1.bias"),
        ("text_projection.weight", "lacks text_projection.weight"),
    ],
)
def test_tensor_that_lacks_in_a_transformers_folder(clip_folder, tmp_path, name, says):
    folder = damaged(clip_folder, tmp_path / "d", lambda state: state.pop(name))
    refused(lambda: read_text_tower(str(folder)), str(folder), says)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("transformer.resblocks.1.attn.in_proj_bias", "lacks transformer.resblocks.1.attn.in_proj_bias"),
        ("token_embedding.weight", "lacks token_embedding.weight"),
        ("text_projection", "lacks text_projection"),
        ("ln_final.bias", "lacks ln_final.bias"),
    ],
)
def test_tensor_that_lacks_in_an_open_clip_file(open_file, tmp_path, name, says):
    file = damaged(open_file, tmp_path / "d", lambda state: state.pop(name))
    refused(lambda: read_text_tower(str(file)), str(file), says)


@pytest.mark.parametrize(
    "name", ["cls_emb", "logit_bias", "transformer.resblocks.0.ls_1.gamma", "text_projection.bias"]
)
def test_tensor_without_a_place(open_file, tmp_path, name):
    file = damaged(open_file, tmp_path / "d", lambda state: state.update({name: torch.ones(96)}))
    refused(lambda: read_text_tower(str(file)), str(file), name)


def test_tensors_of_another_shape(clip_folder, open_file, tmp_path):
    name = "transformer.resblocks.0.attn.in_proj_weight"
    file = damaged(open_file, tmp_path / "a", lambda state: state.update({name: torch.ones(96, 128)}))
    refused(lambda: read_text_tower(str(file)), f"{name} is (96, 128), must be (384, 128)")
    file = damaged(open_file, tmp_path / "b", lambda state: state.update({"text_projection": torch.ones(32, 512)}))
    refused(lambda: read_text_tower(str(file)), str(file), "for 32 channels", "has 128")
    file = damaged(open_file, tmp_path / "c", lambda state: state.update({"positional_embedding": torch.ones(24)}))
    refused(lambda: read_text_tower(str(file)), "positional_embedding is (24,), must be a matrix")
    name = "text_model.final_layer_norm.weight"
    folder = damaged(clip_folder, tmp_path / "d", lambda state: state.update({name: torch.ones(7)}))
    refused(lambda: read_text_tower(str(folder)), f"{name} is (7,), must be (32,)")


def test_another_vocabulary(open_file, tmp_path):
    name = "token_embedding.weight"
    file = damaged(open_file, tmp_path / "d", lambda state: state.update({name: torch.ones(1000, 128)}))
    refused(lambda: read_text_tower(str(file)), str(file), "vocabulary of 1000 tokens", "49408")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ({"width": 256}, "text_cfg.width is 256, the tensors beside it have 128"),
        ({"layers": 3}, "text_cfg.layers is 3"),
        ({"heads": 3}, "3 heads do not divide 128"),
        ({"heads": "two"}, "text_cfg.heads=two"),
        ({"no_causal_mask": True}, "text_cfg.no_causal_mask=True"),
        ({"pool_type": "last"}, "text_cfg.pool_type=last"),
        ({"hf_model_name": "roberta-base"}, "text_cfg.hf_model_name=roberta-base"),
        ({"tokenizer_kwargs": {"clean": "canonicalize"}}, "text_cfg.tokenizer_kwargs"),
    ],
)
def test_open_clip_configurations_of_other_towers(open_file, tmp_path, text, says):
    (tmp_path / OPEN_CLIP_FILE).symlink_to(open_file)
    config = {"model_cfg": {"text_cfg": OPEN_TEXT | text}}
    (tmp_path / OPEN_CLIP_CONFIG).write_text(json.dumps(config), encoding="utf-8")
    refused(lambda: read_text_tower(str(tmp_path)), str(tmp_path), says)


@pytest.mark.parametrize("content", ["[]", "{", '{"model_cfg": {}}', '{"model_cfg": 3}'])
def test_open_clip_configuration_that_is_none(open_file, tmp_path, content):
    (tmp_path / OPEN_CLIP_FILE).symlink_to(open_file)
    (tmp_path / OPEN_CLIP_CONFIG).write_text(content, encoding="utf-8")
    refused(lambda: read_text_tower(str(tmp_path)), str(tmp_path / OPEN_CLIP_CONFIG), "text_cfg")


def test_other_models_of_transformers(clip_folder, tmp_path):
    refused(lambda: read_text_tower(str(save_bert(tmp_path / "bert"))), str(tmp_path / "bert"), "is a bert model")
    CLIPTextModel(text_config()).save_pretrained(tmp_path / "headless")
    refused(lambda: read_text_tower(str(tmp_path / "headless")), str(tmp_path / "headless"), "lacks")
    wrong = damaged(clip_folder, tmp_path / "d", lambda state: None)
    config = json.loads((wrong / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["hidden_act"] = "gelluu"
    (wrong / "config.json").write_text(json.dumps(config), encoding="utf-8")
    refused(lambda: read_text_tower(str(wrong)), str(wrong), "hidden_act=gelluu", "gelu")
    (wrong / "config.json").write_text("{", encoding="utf-8")
    refused(lambda: read_text_tower(str(wrong)), str(wrong / "config.json"))


def test_pickled_weights(clip_folder, tmp_path):
    state = load_file(clip_folder / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    refused(lambda: read_text_tower(str(tmp_path)), f"{tmp_path} holds no model.safetensors", "not read")
    refused(lambda: read_text_tower(str(tmp_path / "pytorch_model.bin")), "pytorch_model.bin is no .safetensors file")


def test_what_is_not_there_or_broken(tmp_path):
    for name in (str(tmp_path / "none"), "here/none.safetensors", "a/b/c", "none"):
        refused(lambda name=name: read_text_tower(name), f"text={name} does not exist")
    refused(
        lambda: read_text_tower(str(tmp_path)), str(tmp_path), "neither config.json nor open_clip_model.safetensors"
    )
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    refused(lambda: read_text_tower(str(tmp_path / "x.safetensors")), "x.safetensors cannot be read")
    save_file({"a": torch.ones(1)}, tmp_path / "y.safetensors")
    refused(lambda: read_text_tower(str(tmp_path / "y.safetensors")), "y.safetensors is no CLIP of open_clip")
    refused(lambda: make_folder(backbone_of("random"), ClipSettings(["a", "b"], "m")), "text=['a', 'b']")


def test_output_that_is_a_file(clip_folder, image_weights, tmp_path):
    (tmp_path / "m").write_bytes(b"")
    refused(lambda: made(tmp_path / "m", clip_folder, image_weights), f"output={tmp_path / 'm'}")
