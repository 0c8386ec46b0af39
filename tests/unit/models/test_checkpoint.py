"""Model folders: what is saved is read again, in the names of format version 1, and nothing else passes for a model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from simzss.checksums import SUMS
from simzss.models.backbone.base import Backbone
from simzss.models.build import build_model, build_untrained
from simzss.models.checkpoint import load_model, save_model
from simzss.models.mask_head.head import build_mask_head
from simzss.models.settings import MaskHeadSettings, ProxySettings, ScratchText
from simzss.models.simzss import SimZSS
from tests.support.models import (
    TINY_VIT,
    backbone_settings,
    encode_alone,
    make_backbone,
    make_bert,
    make_scratch,
    refused,
    save_backbone,
    save_bert,
    shaken,
)

TEXTS = ["a photo of a cat.", "the green dogs"]
BY_SAM = ProxySettings(name="sam")


def make_proxy(folder: Path, seed: int = 3, **changes) -> ProxySettings:
    """A proxy whose weights are saved in a file of this seed."""
    path = save_backbone(folder / f"other{seed}.safetensors", seed)
    return ProxySettings(**{"name": "other", "timm_name": TINY_VIT, "weights": str(path), "beta": 1.1} | changes)


def build(kind: str, folder: Path, feature_norm: str = "center", **changes) -> SimZSS:
    """A model with learnt-looking weights and statistics."""
    backbone = make_backbone(weights=str(save_backbone(folder / "vit.safetensors")), **changes)
    model = SimZSS(backbone, make_bert(save_bert(folder / "bert")) if kind == "bert" else make_scratch(), feature_norm)
    shaken(model.text_encoder, seed=5)
    with torch.no_grad():
        model.logit_scale.fill_(3.25)
    seen = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model.feature_norm.fit([model.backbone(seen)])
    if kind == "masks":
        settings = MaskHeadSettings(window=64, depths=(0, 2), width=16, heads=2, queries=4, layers=2)
        model.mask_head = build_mask_head(settings, model.backbone, ["cat", "dog"])
    model.text_pooling, model.info = "both", {"steps": 12, "untrained": {"seed": 3}}
    return model.eval()


KINDS = {
    "scratch": lambda folder: build("scratch", folder),
    "whiten": lambda folder: build("scratch", folder, "whiten"),
    "bert": lambda folder: build("bert", folder),
    "masks": lambda folder: build("masks", folder),
    "proxy": lambda folder: build("scratch", folder, "none", features="proxy", proxy=make_proxy(folder)),
}
_saved: dict[str, tuple[SimZSS, Path]] = {}


@pytest.fixture
def saved(tmp_path_factory):
    """Model of a kind and the folder it was saved in, made once: nobody changes them."""

    def make(kind: str) -> tuple[SimZSS, Path]:
        if kind not in _saved:
            folder = tmp_path_factory.mktemp(kind)
            model = KINDS[kind](folder)
            save_model(model, folder / "model")
            _saved[kind] = model, folder / "model"
        return _saved[kind]

    return make


def read(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def changed(folder: Path, target: Path, change=lambda config: None) -> Path:
    """A copy of a model folder without sums whose config.json went through `change`."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(SUMS))
    config = read(target)
    change(config)
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def outputs(model: SimZSS) -> dict[str, torch.Tensor]:
    images = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        image = model.encode_image(images)
        found = {"cls": image.cls, "patches": image.patches, "scale": model.logit_scale}
        if model.mask_head is not None:
            head = model.mask_head
            found["masks"] = head(head.encode(model.backbone, model.feature_norm.patches, images))[-1].masks
    for text in TEXTS:
        tokens, features = encode_alone(model.text_encoder, text)
        found |= {f"ids of {text}": torch.tensor(tokens["input_ids"])}
        found |= {f"pooled {text}": features.pooled, f"tokens {text}": features.tokens}
    return found


def same(first: SimZSS, second: SimZSS) -> bool:
    before, after = outputs(first), outputs(second)
    return before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


# What is written, and read again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, saved, tmp_path):
    model, folder = saved(kind)
    loaded = load_model(str(folder))
    assert same(loaded, model)
    assert (loaded.text_pooling, loaded.info) == ("both", model.info)
    assert not loaded.training and not loaded.text_encoder.body.training
    assert (loaded.backbone.proxy, loaded.backbone.settings) == (model.backbone.proxy, model.backbone.settings.replace(
        feature_norm=model.feature_norm.mode))  # fmt: skip
    save_model(loaded, tmp_path / "again")
    assert read(tmp_path / "again") == read(folder)
    stored = [load_file(path / "model.safetensors") for path in (folder, tmp_path / "again")]
    assert stored[0].keys() == stored[1].keys() and all(torch.equal(stored[1][k], v) for k, v in stored[0].items())


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_a_folder(kind, saved):
    model, folder = saved(kind)
    names = {"config.json", "model.safetensors", SUMS}
    if kind == "bert":
        names |= {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == names
    stored = load_file(folder / "model.safetensors")
    parts = {"text_encoder", "feature_norm", "logit_scale"} | ({"multires"} if kind == "masks" else set())
    assert {name.split(".")[0] for name in stored} == parts
    assert torch.equal(stored["text_encoder.projection.weight"], model.text_encoder.projection.weight)
    text = (folder / "config.json").read_text(encoding="utf-8")
    assert not any(word in text for word in ("_target_", "auto_map", "_partial_", "trust_remote_code"))


def test_names_of_format_version_1(saved, tmp_path):
    """Files of earlier releases are read, and theirs read ours."""
    _, folder = saved("proxy")
    config = read(folder)
    assert config["format_version"] == 1
    assert config["settings"] == {"readout": "both", "steps": 12, "untrained": {"seed": 3}}
    weights = {name: str(folder.parent / f"{name}.safetensors") for name in ("vit", "other3")}
    backbone = {"name": "tiny", "timm_name": TINY_VIT, "weights": weights["vit"], "features": "proxy", "project": False,
                "image_size": 64}  # fmt: skip
    proxy = {"name": "other", "timm_name": TINY_VIT, "weights": weights["other3"], "features": "last", "shift": 1.1,
             "gain": 3.0}  # fmt: skip
    found = dict(config["backbone"])
    assert found.pop("fingerprint") != found["proxy"].pop("fingerprint")
    assert found == backbone | {"proxy": proxy}

    model, folder = saved("masks")
    head = model.mask_head.settings.plain()
    head |= {"learned_share": head.pop("ensemble_alpha"), "unseen_share": head.pop("ensemble_beta")}
    assert read(folder)["multires"] == {"head": head, "trained": ["cat", "dog"]}
    assert torch.equal(load_file(folder / "model.safetensors")["multires.no_object"], model.mask_head.no_object)

    for number, (readout, pooling) in enumerate({"concept": "tokens", "sentence": "sentence", None: "tokens"}.items()):
        settings = {"steps": 1} | ({"readout": readout} if readout else {})
        target = changed(folder, tmp_path / str(number), lambda config, given=settings: config.update(settings=given))
        loaded = load_model(target)
        assert (loaded.text_pooling, loaded.info) == (pooling, {"steps": 1})
        save_model(loaded, target)
        assert read(target)["settings"]["readout"] == (readout or "concept")


def test_before_training(tmp_path):
    """A folder tells how its model was before training, also where the backbone's file lies elsewhere now."""
    settings = backbone_settings(
        weights=str(save_backbone(tmp_path / "vit.safetensors")), features="proxy", feature_norm="center"
    )
    arguments = (settings, make_proxy(tmp_path), ScratchText(layers=1, width=32, heads=2, context_length=8), 5)
    model = build_model(*arguments)
    shaken(model.text_encoder)
    model.feature_norm.patch_mean.fill_(0.5)
    save_model(model, tmp_path / "model")
    record = read(tmp_path / "model")["settings"]["untrained"]
    assert (record["backbone"]["proxy"]["shift"], record["backbone"]["feature_norm"]) == (1.1, "center")
    (tmp_path / "vit.safetensors").rename(tmp_path / "moved.safetensors")
    loaded = load_model(tmp_path / "model", str(tmp_path / "moved.safetensors"))
    assert loaded.info == model.info
    untrained = build_untrained(loaded)
    (tmp_path / "moved.safetensors").rename(tmp_path / "vit.safetensors")
    before = build_model(*arguments)
    for name, value in untrained.text_encoder.state_dict().items():
        assert torch.equal(value, before.text_encoder.state_dict()[name]), name
    assert torch.equal(untrained.feature_norm.patch_mean, model.feature_norm.patch_mean)
    model.info = {}
    refused(lambda: build_untrained(model), "untrained")


def test_recorded_paths_do_not_depend_on_where_training_ran(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    save_model(KINDS["proxy"](Path()), tmp_path / "model")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_model(tmp_path / "model").backbone.proxy_backbone is not None


# Other backbones, features and proxies --------------------------------------------------------------------------------


def test_backbone_file_that_moved(tmp_path):
    model = build("scratch", tmp_path)
    save_model(model, tmp_path / "model")
    (tmp_path / "vit.safetensors").rename(tmp_path / "tiny.safetensors")
    refused(lambda: load_model(tmp_path / "model"), "vit.safetensors", "backbone.weights=")
    for place in (tmp_path / "tiny.safetensors", tmp_path):  # the file, or a folder that holds NAME.safetensors
        assert same(load_model(tmp_path / "model", str(place)), model)


def patches(backbone: Backbone) -> torch.Tensor:
    return backbone(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))).patches


@pytest.mark.parametrize(("kind", "features"), [("scratch", "self"), ("proxy", "last"), ("proxy", "value")])
def test_other_features(kind, features, saved):
    """Of a model with a proxy too: it is left out then."""
    _, folder = saved(kind)
    loaded = load_model(folder, features=features).backbone
    assert (loaded.features, loaded.proxy_backbone, loaded.proxy) == (features, None, None)
    plain = make_backbone(weights=str(folder.parent / "vit.safetensors"), features=features)
    assert torch.equal(patches(loaded), patches(plain))


@pytest.mark.parametrize("kind", ["scratch", "proxy"])
def test_another_proxy(kind, saved, tmp_path):
    """One that is asked for by name need not be the one of training."""
    _, folder = saved(kind)
    proxy, features = make_proxy(tmp_path, seed=8, beta=0.7), "proxy" if kind == "scratch" else None
    loaded = load_model(folder, features=features, proxy=proxy).backbone
    assert (loaded.features, loaded.proxy) == ("proxy", proxy)
    expected = make_backbone(proxy, weights=str(folder.parent / "vit.safetensors"), features="proxy")
    assert torch.equal(patches(loaded), patches(expected))
    by_sam = load_model(folder, features="proxy", proxy=BY_SAM).backbone
    assert (by_sam.features, by_sam.proxy, by_sam.proxy_backbone) == ("proxy", BY_SAM, None)


@pytest.mark.parametrize(
    ("kind", "options", "parts"),
    [
        ("scratch", {"features": "proxy"}, ["proxy=NAME"]),
        ("scratch", {"proxy": BY_SAM}, ["proxy=sam", "not last"]),
        ("proxy", {"features": "self", "proxy": BY_SAM}, ["proxy=sam", "not self"]),
        ("scratch", {"features": "slef"}, ["features=slef"]),
        ("masks", {"features": "self"}, ["trained with masks", "last"]),
        ("masks", {"features": "proxy", "proxy": BY_SAM}, ["trained with masks", "last"]),
        ("scratch", {"backbone_weights": "random"}, ["random", "not those"]),
    ],
)
def test_options_that_do_not_go_together(kind, options, parts, saved):
    _, folder = saved(kind)
    refused(lambda: load_model(folder, **options), str(folder), *parts)


@pytest.mark.parametrize("part", ["backbone", "proxy"])
@pytest.mark.parametrize("how", ["given", "exchanged", "random", "fingerprint", "gone"])
def test_other_weights(part, how, saved, tmp_path):
    _, folder = saved("proxy")
    other = str(save_backbone(tmp_path / "other.safetensors", seed=8))
    if how == "given":
        refused(lambda: load_model(folder, other), other, str(folder), "not those")
        return
    new = {"fingerprint": "a"} if how == "fingerprint" else {
        "weights": {"exchanged": other, "random": "random", "gone": str(tmp_path / "gone.pt")}[how]}  # fmt: skip

    def change(config):
        (config["backbone"] if part == "backbone" else config["backbone"]["proxy"]).update(new)

    target = changed(folder, tmp_path / "model", change)
    refused(lambda: load_model(target), str(target), new.get("weights", "weights"))
    if part == "proxy":
        load_model(target, features="value")  # which does not ask it


# Broken folders -------------------------------------------------------------------------------------------------------


def test_folders_that_are_not_there(tmp_path):
    for source in (tmp_path / "nothing", str(tmp_path / "nothing")):
        refused(lambda source=source: load_model(source), str(source), "does not exist")
    refused(lambda: load_model(tmp_path), str(tmp_path), "no config.json")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1, 2]", b'"text"', b"null", b"\x00\x01", b'{"format_version": 1, "x": "\xff\xfe"}']
)
def test_broken_json(text, saved, tmp_path):
    target = changed(saved("scratch")[1], tmp_path / "model")
    (target / "config.json").write_bytes(text)
    refused(lambda: load_model(target), str(target / "config.json"))


BROKEN = {
    **{f"version {v}": (lambda c, v=v: c.update(format_version=v)) for v in (2, 0, "1.0", None)},
    **{f"no {key}": (lambda c, key=key: c.pop(key)) for key in ("backbone", "feature_norm", "text", "settings")},
    "settings": lambda c: c.update(settings=7),
    "readout": lambda c: c["settings"].update(readout="loud"),
    "feature_norm": lambda c: c.update(feature_norm="whitened"),
    "image_size": lambda c: c["backbone"].update(image_size="large"),
    "no body": lambda c: c["text"].pop("body"),
    "no pooling": lambda c: c["text"].pop("pooling"),
    "pooling": lambda c: c["text"].update(pooling="max"),
    "context_length": lambda c: c["text"].update(context_length="many"),
    "no model_type": lambda c: c["text"]["body"].pop("model_type"),
    "model_type": lambda c: c["text"]["body"].update(model_type="nonsense"),
    "hidden_size": lambda c: c["text"]["body"].update(hidden_size="wide"),
    **{
        f"no proxy.{key}": (lambda c, key=key: c["backbone"]["proxy"].pop(key))
        for key in ("name", "timm_name", "features", "shift", "fingerprint")
    },
    "gain": lambda c: c["backbone"]["proxy"].update(gain="high"),
    "number for a name": lambda c: c["backbone"]["proxy"].update(timm_name=7),
    "unknown name": lambda c: c["backbone"]["proxy"].update(timm_name="nonsense"),
    "trained": lambda c: c["multires"].update(trained="cat"),
    "no head": lambda c: c["multires"].pop("head"),
    "head": lambda c: c["multires"]["head"].update(learned_share=2),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_values(kind, saved, tmp_path):
    of = "proxy" if "proxy" in kind or "name" in kind or kind == "gain" else "masks"
    target = changed(saved(of)[1], tmp_path / "model", BROKEN[kind])
    refused(lambda: load_model(target), str(target))


@pytest.mark.parametrize("kind", ["missing", "broken", "half", "lacks", "surplus", "shape", "other config"])
def test_tensors_that_do_not_fit(kind, saved, tmp_path):
    target = changed(
        saved("scratch")[1],
        tmp_path / "model",
        lambda config: config["text"]["body"].update(intermediate_size=64) if kind == "other config" else None,
    )
    path, name = target / "model.safetensors", "text_encoder.projection.weight"
    state, content = load_file(path), path.read_bytes()
    if kind == "lacks":
        state.pop(name)
    elif kind == "surplus":
        state[name := "text_encoder.more"] = torch.zeros(3)
    elif kind == "shape":
        state[name] = state[name][:, :-1].contiguous()
    save_file(state, path)
    if kind == "missing":
        path.unlink()
    elif kind in ("broken", "half"):
        path.write_bytes(b"x" * 100 if kind == "broken" else content[:1000])
    expected = name if kind in ("lacks", "surplus", "shape") else ""
    refused(lambda: load_model(target), str(path), expected)


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer/tokenizer.json"])
def test_tokenizer_that_is_gone(part, saved, tmp_path):
    target = changed(saved("bert")[1], tmp_path / "model")
    (target / part).rename(tmp_path / "elsewhere")
    refused(lambda: load_model(target), "tokenizer", str(target))
