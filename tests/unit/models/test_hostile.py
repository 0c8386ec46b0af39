"""Weights and model folders of strangers: no code in them runs, and no size that they claim is believed."""

import json
import pickle
import resource
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.clip_text import read_text_tower
from simzss.checksums import SUMS
from simzss.errors import InputError
from simzss.models.build import build_text_encoder
from simzss.models.checkpoint import load_model, save_model
from simzss.models.mask_head.head import build_mask_head
from simzss.models.sam.load import load_sam
from simzss.models.settings import MaskHeadSettings, PretrainedText
from simzss.models.simzss import SimZSS
from simzss.models.tensors import read_tensors
from tests.support.models import Harmful, make_backbone, make_bert, refused, save_backbone, save_bert
from tests.unit.models.sam.tiny import save_first

pytestmark = pytest.mark.hostile


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A model folder with a tokenizer and a mask head, a text model and a SAM, each as its program wrote it."""
    home = tmp_path_factory.mktemp("sources")
    backbone = make_backbone(weights=str(save_backbone(home / "vit.safetensors")))
    model = SimZSS(backbone, make_bert(save_bert(home / "text")))
    settings = MaskHeadSettings(window=64, depths=(0,), width=16, heads=2, queries=4, layers=1)
    model.mask_head = build_mask_head(settings, backbone, ["cat"])
    save_model(model.eval(), home / "model")
    (home / "model" / SUMS).unlink()
    save_first(home / "sam")
    return home


def load_text(folder: Path) -> object:
    return build_text_encoder(PretrainedText(weights=str(folder), context_length=20), 64)


LOADERS = {
    "model": load_model,
    "text": load_text,
    "sam": lambda folder: load_sam(str(folder)),
    "clip": lambda folder: read_text_tower(str(folder)),
    "vit.pth": lambda file: make_backbone(weights=str(file)),
    "sam.pt": lambda file: load_sam(str(file)),
}


def attack(sources: Path, target: Path, name: str, act) -> Path:
    """A copy of a source, or a file, on which `act` was done."""
    source = sources / ("text" if name == "clip" else name)
    path = target / name
    if source.is_dir():
        shutil.copytree(source, path)
    act(path)
    return path


def edit(folder: Path, dotted: str, value, file: str = "config.json") -> None:
    config = json.loads((folder / file).read_text(encoding="utf-8"))
    *sections, key = dotted.split(".")
    section = config
    for name in sections:
        section = section[name]
    section[key] = value
    (folder / file).write_text(json.dumps(config), encoding="utf-8")


# Code -----------------------------------------------------------------------------------------------------------------


def as_pickle(file: Path, trace: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pickle.dumps({"state_dict": Harmful(trace)}))


def as_torch(file: Path, trace: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": {"a": torch.zeros(2)}, "x": Harmful(trace)}, file)


def backbone_of(form: str):
    def act(folder: Path, trace: Path) -> None:
        as_torch(folder.parent / f"evil.{form}", trace)
        edit(folder, "backbone.weights", str(folder.parent / f"evil.{form}"))

    return act


def only_pickle(folder: Path, trace: Path) -> None:
    (folder / "model.safetensors").unlink()
    as_torch(folder / "pytorch_model.bin", trace)


def named(key: str, value, file: str = "config.json"):
    """Python beside the weights, and a key that names it."""

    def act(folder: Path, trace: Path) -> None:
        (folder / file).with_name("evil.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
        as_torch(folder.parent / "evil.bin", trace)
        edit(folder, key, value, file)

    return act


AUTO = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Slow", "evil.Fast"]}
SETTINGS_OF_TOKENIZER = "tokenizer/tokenizer_config.json"
CODE = {
    "model: pickle for safetensors": lambda folder, trace: as_pickle(folder / "model.safetensors", trace),
    "model: torch for safetensors": lambda folder, trace: as_torch(folder / "model.safetensors", trace),
    "model: only pytorch_model.bin": only_pickle,
    "model: backbone .pth": backbone_of("pth"),
    "model: backbone .bin": backbone_of("bin"),
    "model: tokenizer.json": lambda folder, trace: as_pickle(folder / "tokenizer" / "tokenizer.json", trace),
    "model: auto_map": named("text.body.auto_map", AUTO),
    "model: _target_": named("_target_", "os.mkdir"),
    "model: model_type": named("text.body.model_type", "evil"),
    "model: attention": named("text.body._attn_implementation", "someone/kernel"),
    "model: tokenizer's auto_map": named("auto_map", AUTO, SETTINGS_OF_TOKENIZER),
    "model: tokenizer's class": named("tokenizer_class", "evil.Slow", SETTINGS_OF_TOKENIZER),
    "text: only pytorch_model.bin": only_pickle,
    "text: pickle for safetensors": lambda folder, trace: as_pickle(folder / "model.safetensors", trace),
    "text: auto_map": named("auto_map", AUTO),
    "text: other weights": named("transformers_weights", "../evil.bin"),
    "text: quantised": named("quantization_config", {"quant_method": "evil"}),
    "clip: only pytorch_model.bin": only_pickle,
    "sam: only pytorch_model.bin": only_pickle,
    "sam: torch for safetensors": lambda folder, trace: as_torch(folder / "model.safetensors", trace),
    "sam: auto_map": named("auto_map", AUTO),
    "vit.pth: torch": as_torch,
    "vit.pth: pickle": as_pickle,
    "sam.pt: torch": as_torch,
    "sam.pt: pickle": as_pickle,
}


@pytest.mark.parametrize("kind", CODE)
def test_code_is_not_run(kind, sources, tmp_path):
    name, trace = kind.partition(":")[0], tmp_path / "was run"
    path = attack(sources, tmp_path, name, lambda path: CODE[kind](path, trace))
    try:
        LOADERS[name](path)
    except InputError as error:
        assert "\n" not in str(error) and str(tmp_path) in str(error)
    assert not trace.exists()


# Sizes ----------------------------------------------------------------------------------------------------------------

SIZES = {
    "model": ["text.body.num_hidden_layers=1000000", "text.body.hidden_size=1000000000",
              "text.body.hidden_size=1048576", "text.body.vocab_size=1000000000",
              "text.body.vocab_size=16000000", "text.body.intermediate_size=16000000",
              "text.body.max_position_embeddings=1000000000", "text.context_length=1000000000000",
              "text.body.layer_norm_eps=1e999", "text.body.hidden_size=-5", "text.body.hidden_size=NaN",
              f"text.body.hidden_size={'9' * 5000}", f"text.body.hidden_size={'9' * 500}", "text.body=[]", "text=7",
              "text.body.id2label=" + '{"a":' * 90 + "1" + "}" * 90, "settings=" + "[" * 100_000 + "]" * 100_000,
              "backbone.image_size=1000000000", "backbone.image_size=1e30", "multires.head.layers=1000000",
              "multires.head.queries=16000000", "multires.head.width=4194304", "multires.head.window=64000000",
              "multires.head.depths=[0,0]", "feature_norm=[1]", "format_version=1e999",
              'text.body.model_type="timm_wrapper"', 'text.body.model_type="lightglue"',
              "text.body.num_labels=16000000"],
    "text": ["num_hidden_layers=1000000", "hidden_size=1048576", "vocab_size=16000000", "intermediate_size=16000000",
             "max_position_embeddings=1000000000", "max_position_embeddings=4000000", "num_labels=16000000"],
    "sam": ["vision_config.num_hidden_layers=1000000", "vision_config.hidden_size=1048576",
            "vision_config.image_size=1000000", "mask_decoder_config.hidden_size=1048576"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "claim"), [(name, claim) for name, claims in SIZES.items() for claim in claims],
                         ids=lambda text: text[:50])  # fmt: skip
def test_claims_are_not_believed(name, claim, sources, tmp_path):
    """Refused in one line before anything of that size is made."""
    key, _, value = claim.partition("=")

    def act(folder):
        edit(folder, key, "CLAIM")
        text = (folder / "config.json").read_text(encoding="utf-8")
        (folder / "config.json").write_text(text.replace('"CLAIM"', value), encoding="utf-8")

    path = attack(sources, tmp_path, name, act)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(lambda: LOADERS[name](path), str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    ("key", "meant"),
    [("bakcbone", "backbone"), ("backbone.image_sise", "image_size"), ("text.poolling", "pooling"),
     ("text.body.hiden_size", "hidden_size"), ("settings.readuot", "readout"), ("multires.traned", "trained"),
     ("multires.head.learned_shre", "learned_share")],
)  # fmt: skip
def test_misspelt_keys(key, meant, sources, tmp_path):
    def act(folder):
        if meant in ("hidden_size", "readout"):  # other keys of these sections may be of other releases
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            (config["text"]["body"] if meant == "hidden_size" else config["settings"]).pop(meant)
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        edit(folder, key, 1)

    path = attack(sources, tmp_path, "model", act)
    refused(lambda: load_model(path), str(path), key.rpartition(".")[2], meant)


# Broken and swollen files ---------------------------------------------------------------------------------------------


def squeezed(file: Path) -> None:
    """A compressed archive, a thousandth of what it unpacks to."""
    torch.save({"a": torch.zeros(2**20)}, file)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def headed(header: dict, length: int | None = None):
    text = json.dumps(header).encode()
    return lambda file: file.write_bytes((length or len(text)).to_bytes(8, "little") + text + bytes(16))


FILES = {
    "compressed": squeezed,
    "a view of one number": lambda file: torch.save({"a": torch.zeros(1).expand(2**40)}, file),
    "no memory at all": lambda file: torch.save({"a": torch.empty(2**40, device="meta")}, file),
    "a header of 2^62 bytes": headed({}, 2**62),
    "a shape beyond the file": headed({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "a shape that overflows": headed({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}),
    "nested": lambda file: file.write_bytes((10**5).to_bytes(8, "little") + b'{"a":' * 20_000),
    "no number": lambda file: save_file({"a": torch.tensor([1.0, float("nan")])}, file),
    "no number of one byte": lambda file: save_file({"a": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}, file),
    "infinite": lambda file: torch.save({"a": torch.tensor([float("inf")])}, file),
    "empty": lambda file: file.touch(),
    "a folder": lambda file: file.mkdir(),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_weights(kind, tmp_path):
    """By the one reader, for a backbone and for a SAM alike."""
    file = tmp_path / "weights.pt"
    FILES[kind](file)
    for read in (lambda: read_tensors(file), *([] if file.is_dir() else [lambda: LOADERS["vit.pth"](file)])):
        said = refused(read, str(file))
    assert not kind.startswith(("no number", "infinite")) or "a holds values" in said


@pytest.mark.parametrize("name", ["model", "text", "sam"])
def test_numbers_that_are_none(name, sources, tmp_path):
    def act(folder):
        state = load_file(folder / "model.safetensors")
        worst = next(key for key, value in state.items() if value.is_floating_point() and value.numel() > 4)
        state[worst].flatten()[3] = float("nan")
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        named.append(worst)

    named: list[str] = []
    path = attack(sources, tmp_path, name, act)
    refused(lambda: LOADERS[name](path), str(path), named[0])


# Ways out of the folder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer", "tokenizer/tokenizer.json", SUMS])
def test_links_out_of_the_folder(name, sources, tmp_path):
    def act(folder):
        if (folder / name).exists():
            (folder / name).rename(tmp_path / "elsewhere")
        else:
            (tmp_path / "elsewhere").touch()
        (folder / name).symlink_to(tmp_path / "elsewhere")

    path = attack(sources, tmp_path, "model", act)
    refused(lambda: load_model(path), str(path / name), "link")
    linked = tmp_path / "linked"
    linked.symlink_to(sources / "model")
    load_model(linked)  # the folder itself may be one


@pytest.mark.parametrize("value", ["../tokenizer", "/tmp", "tokenizer/..", 7])
def test_tokenizer_elsewhere(value, sources, tmp_path):
    path = attack(sources, tmp_path, "model", lambda folder: edit(folder, "text.tokenizer", value))
    refused(lambda: load_model(path), str(path), "text.tokenizer")


def test_tokenizer_is_not_fetched(sources, tmp_path, monkeypatch):
    """`model/tokenizer` that is not there would be the name of a repository."""
    attack(sources, tmp_path, "model", lambda folder: shutil.rmtree(folder / "tokenizer"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.utils._http.get_session", None)
    refused(lambda: load_model("model"), "no tokenizer in model/tokenizer: there is no such folder")
