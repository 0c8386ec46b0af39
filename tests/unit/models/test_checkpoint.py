import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

from simzss.models.checkpoint import load_model, save_model
from simzss.models.features import ImageFeatures
from simzss.models.simzss import SimZSS
from tests.support.models import (
    backbone_options,
    encode_alone,
    make_backbone,
    make_bert,
    make_scratch,
    refused,
    save_backbone,
    save_bert,
    shaken,
)

SETTINGS = {"readout": "concept", "steps": 12, "untrained": {"seed": 3}}
UNPLANNED = (KeyError, ValueError, TypeError, StrictDataclassError)
TEXTS = ["a photo of a cat.", "the green dogs"]


def build(kind: str, folder: Path, feature_norm: str) -> tuple[SimZSS, dict]:
    """A model with learnt-looking weights and statistics, and the arguments of its backbone."""
    spec = backbone_options(weights=str(save_backbone(folder / "vit.safetensors")))
    text = make_scratch() if kind == "scratch" else make_bert(save_bert(folder / "bert"))
    model = SimZSS(make_backbone(**spec), text, feature_norm)
    shaken(model.text_encoder, seed=5)
    with torch.no_grad():
        model.logit_scale.fill_(3.25)
    seen = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model.feature_norm.fit([model.backbone(seen)])
    return model.eval(), spec


@pytest.fixture(params=[("scratch", "whiten"), ("bert", "center"), ("scratch", "none")], ids="-".join)
def saved(request, tmp_path):
    """(model, folder it was saved in)."""
    model, spec = build(request.param[0], tmp_path, request.param[1])
    save_model(model, tmp_path / "model", spec, SETTINGS)
    return model, tmp_path / "model"


@pytest.fixture(scope="module")
def scratch_folder(tmp_path_factory):
    """A saved model that nobody changes."""
    folder = tmp_path_factory.mktemp("scratch")
    model, spec = build("scratch", folder, "center")
    save_model(model, folder / "model", spec, SETTINGS)
    return folder / "model"


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A saved model with a pretrained text encoder that nobody changes."""
    folder = tmp_path_factory.mktemp("bert")
    model, spec = build("bert", folder, "center")
    save_model(model, folder / "model", spec, SETTINGS)
    return folder / "model"


def changed(folder: Path, target: Path, change) -> Path:
    """A copy of a model folder whose config.json went through `change`."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    change(config)
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def outputs(model: SimZSS) -> dict[str, torch.Tensor]:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    found = {}
    with torch.no_grad():
        image: ImageFeatures = model.encode_image(images)
        found |= {"cls": image.cls, "patches": image.patches, "scale": model.logit_scale}
    for text in TEXTS:
        tokens, features = encode_alone(model.text_encoder, text)
        found |= {f"ids of {text}": torch.tensor(tokens["input_ids"])}
        found |= {f"pooled {text}": features.pooled, f"tokens {text}": features.tokens}
    return found


def test_round_trip(saved):
    model, folder = saved
    loaded, settings = load_model(folder)
    assert settings == SETTINGS
    assert not loaded.training and not loaded.text_encoder.body.training
    before, after = outputs(model), outputs(loaded)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert load_model(str(folder))[1] == SETTINGS


def test_what_is_in_the_folder(saved):
    model, folder = saved
    names = {"config.json", "model.safetensors"}
    if model.text_encoder.pooling == "mean":
        names |= {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == names
    stored = load_file(folder / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == {"text_encoder", "feature_norm", "logit_scale"}
    assert torch.equal(stored["text_encoder.projection.weight"], model.text_encoder.projection.weight)


def keys_and_texts(node) -> list[str]:
    if isinstance(node, dict):
        return [str(key) for key in node] + [entry for value in node.values() for entry in keys_and_texts(value)]
    if isinstance(node, list):
        return [entry for value in node for entry in keys_and_texts(value)]
    return [node] if isinstance(node, str) else []


def test_config_names_no_code(saved):
    model, folder = saved
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = keys_and_texts(config)
    for word in ("_target_", "auto_map", "_partial_", "trust_remote_code"):
        assert not any(word in entry for entry in found), word
    assert config["format_version"] == 1
    assert config["backbone"]["timm_name"] == "test_vit.r160_in1k"
    assert config["backbone"]["weights"] == str(folder.parent / "vit.safetensors")
    assert config["feature_norm"] == model.feature_norm.mode


def test_code_that_a_config_names_is_not_run(scratch_folder, tmp_path):
    """`auto_map` is how transformers models bring their own Python."""
    trace = tmp_path / "was run"
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")

    def change(config):
        config["_target_"] = "os.mkdir"
        config["text"]["body"]["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}

    target = changed(scratch_folder, tmp_path / "model", change)
    shutil.copy(tmp_path / "evil.py", target / "evil.py")
    load_model(target)
    assert not trace.exists()


def test_saving_over_an_earlier_model(tmp_path):
    first, spec = build("scratch", tmp_path, "center")
    save_model(first, tmp_path / "model", spec, SETTINGS)
    shaken(first.text_encoder, seed=9)
    save_model(first, tmp_path / "model", spec, {"readout": "sentence"})
    loaded, settings = load_model(tmp_path / "model")
    assert settings == {"readout": "sentence"}
    assert torch.equal(loaded.text_encoder.projection.weight, first.text_encoder.projection.weight)


def test_config_is_written_last(tmp_path, monkeypatch):
    """A run that dies while saving leaves no folder that looks complete."""
    model, spec = build("scratch", tmp_path, "center")
    save_model(model, tmp_path / "model", spec, SETTINGS)

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("simzss.models.checkpoint.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_model(model, tmp_path / "model", spec, SETTINGS)
    refused(lambda: load_model(tmp_path / "model"), "no config.json")


@pytest.mark.parametrize("version", [2, 0, "1.0", None])
def test_other_format_version(version, scratch_folder, tmp_path):
    target = changed(scratch_folder, tmp_path / "model", lambda config: config.update(format_version=version))
    refused(lambda: load_model(target), str(target / "config.json"), f"version {version}", "reads version 1")


def test_not_there(tmp_path):
    refused(lambda: load_model(tmp_path / "nothing"), str(tmp_path / "nothing"), "does not exist")
    refused(lambda: load_model(str(tmp_path / "nothing")), str(tmp_path / "nothing"), "does not exist")
    refused(lambda: load_model(tmp_path), str(tmp_path), "no config.json")


@pytest.mark.parametrize("text", ["", "{", '{"format_version": 1', "[1, 2]", '"text"', "null", "\x00\x01"])
def test_broken_json(text, scratch_folder, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(scratch_folder, target)
    (target / "config.json").write_text(text)
    refused(lambda: load_model(target), str(target / "config.json"))


def test_json_that_is_no_text(scratch_folder, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(scratch_folder, target)
    (target / "config.json").write_bytes(b'{"format_version": 1, "x": "\xff\xfe"}')
    refused(lambda: load_model(target), str(target / "config.json"))


@pytest.mark.parametrize("key", ["backbone", "feature_norm", "text", "settings"])
def test_missing_part(key, scratch_folder, tmp_path):
    target = changed(scratch_folder, tmp_path / "model", lambda config: config.pop(key))
    refused(lambda: load_model(target), str(target / "config.json"), key)


@pytest.mark.parametrize("kind", ["missing", "broken", "half"])
def test_weights_that_cannot_be_read(kind, scratch_folder, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(scratch_folder, target)
    path = target / "model.safetensors"
    if kind == "missing":
        path.rename(tmp_path / "elsewhere")
    else:
        path.write_bytes(b"x" * 100 if kind == "broken" else path.read_bytes()[:1000])
    refused(lambda: load_model(target), str(path))


@pytest.mark.parametrize("kind", ["missing tensor", "surplus tensor", "other shape", "other config"])
def test_tensors_that_do_not_fit(kind, scratch_folder, tmp_path):
    target = changed(
        scratch_folder,
        tmp_path / "model",
        lambda config: config["text"]["body"].update(intermediate_size=64) if kind == "other config" else None,
    )
    path = target / "model.safetensors"
    state = load_file(path)
    name = "text_encoder.projection.weight"
    if kind == "missing tensor":
        state.pop(name)
    elif kind == "surplus tensor":
        state[name := "text_encoder.more"] = torch.zeros(3)
    elif kind == "other shape":
        state[name] = state[name][:, :-1].contiguous()
    else:
        name = "text_encoder.body"
    save_file(state, path)
    refused(lambda: load_model(target), str(path), name)


def test_backbone_of_other_weights(scratch_folder, tmp_path):
    other = save_backbone(tmp_path / "other.safetensors", seed=1)
    refused(lambda: load_model(scratch_folder, str(other)), str(other), str(scratch_folder), "not those")
    # The file was exchanged where the model expects it.
    target = changed(scratch_folder, tmp_path / "model", lambda config: config["backbone"].update(weights=str(other)))
    refused(lambda: load_model(target), str(other), "not those")


def test_backbone_file_that_moved(tmp_path):
    model, spec = build("scratch", tmp_path, "center")
    save_model(model, tmp_path / "model", spec, SETTINGS)
    before = outputs(model)
    (tmp_path / "vit.safetensors").rename(tmp_path / "tiny.safetensors")
    refused(lambda: load_model(tmp_path / "model"), "vit.safetensors", "backbone.weights=")
    for place in (tmp_path / "tiny.safetensors", tmp_path):  # the file, or a folder that holds <name>.safetensors
        after = outputs(load_model(tmp_path / "model", str(place))[0])
        for name, value in before.items():
            assert torch.equal(after[name], value), name


def test_recorded_place_does_not_depend_on_where_training_ran(tmp_path, monkeypatch):
    save_backbone(tmp_path / "vit.safetensors")
    monkeypatch.chdir(tmp_path)
    spec = backbone_options(weights="vit.safetensors")
    save_model(SimZSS(make_backbone(**spec), make_scratch()), tmp_path / "model", spec, SETTINGS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load_model(tmp_path / "model")


def test_tokenizer_folder_is_needed(bert_folder, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(bert_folder, target)
    (target / "tokenizer").rename(tmp_path / "elsewhere")
    refused(lambda: load_model(target), "tokenizer", str(target))


def test_tokenizer_file_is_needed(bert_folder, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(bert_folder, target)
    (target / "tokenizer" / "tokenizer.json").rename(tmp_path / "elsewhere")
    refused(lambda: load_model(target), "tokenizer", str(target))


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["text"].pop("body"),
        lambda config: config["text"].pop("pooling"),
        lambda config: config["text"].update(context_length="many"),
        lambda config: config["text"]["body"].pop("model_type"),
        lambda config: config["text"]["body"].update(model_type="nonsense"),
        lambda config: config["text"]["body"].update(hidden_size="wide"),
        lambda config: config["backbone"].update(image_size="large"),
    ],
    ids=["body", "pooling", "context_length", "model_type", "unknown model_type", "hidden_size", "image_size"],
)
def test_broken_parts(change, scratch_folder, tmp_path):
    target = changed(scratch_folder, tmp_path / "model", change)
    refused(lambda: load_model(target), str(target))


def test_unknown_pooling(scratch_folder, tmp_path):
    target = changed(scratch_folder, tmp_path / "model", lambda config: config["text"].update(pooling="max"))
    refused(lambda: load_model(target), str(target), "max")


@pytest.mark.parametrize("when", ["saved", "given"])
def test_random_backbone_is_not_the_one_of_training(when, scratch_folder, tmp_path):
    if when == "given":
        refused(lambda: load_model(scratch_folder, "random"), "random")
        return
    spec = backbone_options()
    model = SimZSS(make_backbone(**spec), make_scratch()).eval()
    save_model(model, tmp_path / "model", spec, SETTINGS)
    torch.manual_seed(17)
    refused(lambda: load_model(tmp_path / "model"), "random", str(tmp_path / "model"))


# Another backbone as guide ----------------------------------------------------------------------------------------

BY_SAM = {"name": "sam", "timm_name": None, "weights": None, "features": "last", "shift": 1.2, "gain": 3.0}


def proxy_options(folder: Path, seed: int = 3, **changes) -> dict:
    """Arguments of the other backbone, whose weights are saved in a file of this seed."""
    path = save_backbone(folder / f"guide{seed}.safetensors", seed)
    made = {"name": "guide", "timm_name": "test_vit.r160_in1k", "weights": str(path), "features": "last"}
    return made | {"shift": 1.1, "gain": 4.0} | changes


def build_proxied(folder: Path) -> tuple[SimZSS, dict]:
    proxy = proxy_options(folder)
    weights = str(save_backbone(folder / "vit.safetensors"))
    spec = backbone_options(weights=weights, features="proxy", proxy=proxy)
    return SimZSS(make_backbone(**spec), make_scratch(), "none").eval(), spec


@pytest.fixture(scope="module")
def proxied_folder(tmp_path_factory):
    """A saved model with a guide that nobody changes."""
    folder = tmp_path_factory.mktemp("proxied")
    model, spec = build_proxied(folder)
    save_model(model, folder / "model", spec, SETTINGS)
    return folder / "model"


def same(first: SimZSS, second: SimZSS) -> bool:
    before, after = outputs(first), outputs(second)
    return before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def read(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_round_trip_with_a_proxy(proxied_folder, tmp_path):
    model, spec = build_proxied(tmp_path)
    loaded, settings = load_model(proxied_folder)
    assert settings == SETTINGS and not loaded.training
    assert same(loaded, model)
    assert (loaded.backbone.features, loaded.backbone.guide.name) == ("proxy", "guide")
    assert not same(loaded, SimZSS(make_backbone(**spec | {"features": "value", "proxy": None}), model.text_encoder))
    # What was loaded can be saved.
    config = read(proxied_folder)
    save_model(loaded, tmp_path / "again", config["backbone"], SETTINGS)
    assert read(tmp_path / "again") == config
    assert same(load_model(tmp_path / "again")[0], model)


def test_the_proxy_is_named_and_its_weights_are_not_stored(proxied_folder):
    config = read(proxied_folder)["backbone"]
    guide = load_model(proxied_folder)[0].backbone.guide
    file = proxied_folder.parent / "guide3.safetensors"
    assert config["proxy"] == {
        "name": "guide",
        "timm_name": "test_vit.r160_in1k",
        "weights": str(file),
        "features": "last",
        "shift": 1.1,
        "gain": 4.0,
        "fingerprint": guide.fingerprint,
    }
    assert config["fingerprint"] != guide.fingerprint and config["features"] == "proxy"
    for name, value in load_file(file).items():
        assert name.startswith("head.") or torch.equal(guide.model.state_dict()[name], value), name
    stored = load_file(proxied_folder / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == {"text_encoder", "feature_norm", "logit_scale"}


def test_recorded_place_of_a_proxy_does_not_depend_on_where_training_ran(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    model, spec = build_proxied(Path())
    save_model(model, tmp_path / "model", spec, SETTINGS)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_model(tmp_path / "model")[0].backbone.guide is not None


@pytest.mark.parametrize(
    ("kind", "features"), [("scratch_folder", "self"), ("proxied_folder", "last"), ("proxied_folder", "value")]
)
def test_other_features(kind, features, request):
    """Of a model with a guide too: it is left out then."""
    folder = request.getfixturevalue(kind)
    loaded, _ = load_model(folder, features=features)
    assert loaded.backbone.features == features
    assert loaded.backbone.guide is None and loaded.backbone.proxy is None
    weights = str(folder.parent / "vit.safetensors")
    plain = make_backbone(weights=weights, features=features)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.backbone(image).patches, plain(image).patches)


@pytest.mark.parametrize("kind", ["scratch_folder", "proxied_folder"])
def test_another_proxy(kind, request, tmp_path):
    """One that is asked for by name need not be the one of training."""
    folder, proxy = request.getfixturevalue(kind), proxy_options(tmp_path, seed=8, shift=0.7)
    loaded, _ = load_model(folder, features="proxy" if kind == "scratch_folder" else None, proxy=proxy)
    assert loaded.backbone.features == "proxy" and loaded.backbone.proxy == proxy
    expected = make_backbone(weights=str(folder.parent / "vit.safetensors"), features="proxy", proxy=proxy)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.backbone(image).patches, expected(image).patches)


@pytest.mark.parametrize("kind", ["scratch_folder", "proxied_folder"])
def test_a_proxy_whose_features_are_given_later(kind, request):
    loaded, _ = load_model(request.getfixturevalue(kind), features="proxy", proxy=BY_SAM)
    assert loaded.backbone.guide is None
    assert loaded.backbone.proxy == BY_SAM and loaded.backbone.features == "proxy"


def test_features_and_proxies_that_do_not_go_together(scratch_folder, proxied_folder, tmp_path):
    proxy = proxy_options(tmp_path)
    refused(lambda: load_model(scratch_folder, features="proxy"), str(scratch_folder), "proxy=NAME")
    refused(lambda: load_model(scratch_folder, proxy=proxy), "proxy=guide", "not last")
    refused(lambda: load_model(proxied_folder, features="self", proxy=proxy), "proxy=guide", "not self")
    refused(lambda: load_model(scratch_folder, features="slef"), str(scratch_folder), "backbone.features=slef")


@pytest.mark.parametrize("kind", ["exchanged", "random", "other fingerprint"])
def test_proxy_of_other_weights(kind, proxied_folder, tmp_path):
    other = str(save_backbone(tmp_path / "other.safetensors", seed=8))

    def change(config):
        proxy = config["backbone"]["proxy"]
        proxy.update({"exchanged": {"weights": other}, "random": {"weights": "random"}}.get(kind, {"fingerprint": "a"}))

    target = changed(proxied_folder, tmp_path / "model", change)
    says = {"exchanged": other, "random": "random"}.get(kind, "guide3.safetensors")
    refused(lambda: load_model(target), str(target), f"{says} of proxy guide", "not those")
    load_model(target, features="value")  # which does not ask it


def test_proxy_file_that_is_gone(proxied_folder, tmp_path):
    gone = str(tmp_path / "gone.safetensors")
    target = changed(
        proxied_folder, tmp_path / "model", lambda config: config["backbone"]["proxy"].update(weights=gone)
    )
    refused(lambda: load_model(target), str(target), f"proxy.weights={gone}", "does not exist")


@pytest.mark.parametrize(
    "change",
    [
        *(lambda proxy, key=key: proxy.pop(key) for key in ("name", "timm_name", "features", "shift", "fingerprint")),
        lambda proxy: proxy.update(gain="high"),
        lambda proxy: proxy.update(timm_name=7),
        lambda proxy: proxy.update(timm_name="nonsense"),
    ],
    ids=["name", "timm_name", "features", "shift", "fingerprint", "gain", "number for a name", "unknown name"],
)
def test_broken_proxy(change, proxied_folder, tmp_path):
    target = changed(proxied_folder, tmp_path / "model", lambda config: change(config["backbone"]["proxy"]))
    refused(lambda: load_model(target), str(target))


def test_folders_of_before_there_were_proxies(scratch_folder, tmp_path):
    assert "proxy" not in read(scratch_folder)["backbone"]
    target = changed(scratch_folder, tmp_path / "model", lambda config: config["backbone"].update(proxy=None))
    first, second = load_model(scratch_folder)[0], load_model(target)[0]
    assert first.backbone.proxy is None and second.backbone.proxy is None
    assert same(first, second)
