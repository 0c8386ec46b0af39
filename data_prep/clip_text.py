"""CLIP's text tower from other programs' files: the layouts of transformers and of open_clip, safetensors alone."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, CLIPTextConfig, CLIPTextModel
from transformers.activations import ACT2FN

from simzss.errors import InputError, nearest
from simzss.models.tokenizer import clip_tokenizer

OPEN_CLIP_FILE = "open_clip_model.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"
_HEAD_WIDTH = 64  # of every CLIP text tower that open_clip ships without saying otherwise
_PROJECTION = "text_projection.weight"  # (D, C)
_BUFFERS = ("text_model.embeddings.position_ids", "attn_mask")  # written by old releases, made anew by all
_IMAGE_PROJECTIONS = ("visual_projection.weight", "visual.head.proj.weight", "visual.proj")
# Of open_clip's text settings: those that the shapes tell or that do not change the tower, and values of the rest
# that mean the tower of the paper.
_FREE = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id", "eos_id", "output_tokens")
_PLAIN = {"pool_type": ("argmax", "eos"), "proj_type": ("linear",)}
_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Parts of a block that open_clip and transformers hold alike."""


@dataclass(frozen=True)
class TextTower:
    """CLIP's text tower as it was read.

    Args:
        body: transformer over tokens, float32.
        projection: (D, C) from its C channels into the joint space.
        logit_scale: log of the factor of the cosines; None where the weights come without it.
        image_projection: (D, V), the image tower's, by which the two towers of one CLIP are known; None if not there.
    """

    body: Any
    projection: Tensor
    logit_scale: float | None
    image_projection: Tensor | None


def read_text_tower(text: str, quick_gelu: bool | None = None, otherwise: bool = False) -> TextTower:
    """Read the text tower of a CLIP.

    Args:
        text: folder of transformers, .safetensors file of open_clip, folder that holds `open_clip_model.safetensors`,
            or hub repository `owner/name` of either layout.
        quick_gelu: activation of the tower; None for what its configuration says.
        otherwise: `quick_gelu` where no configuration says it.

    Raises:
        InputError: nothing there, no CLIP, tensors that lack or that have no place, another vocabulary.
    """
    path = Path(text)
    if not path.exists():
        if text.startswith((".", "/", "~")) or len(path.parts) != 2 or path.suffix == ".safetensors":
            raise InputError(f"text={text} does not exist")
        path = _fetch(text)
    if path.is_dir() and (path / OPEN_CLIP_FILE).is_file():
        path = path / OPEN_CLIP_FILE
    if path.is_dir():
        return _read_transformers(path, quick_gelu)
    if path.suffix != ".safetensors":
        raise InputError(f"text={text} is no .safetensors file: formats that may hold code (.bin, .pt, .pth) "
                         "are not read")  # fmt: skip
    return _read_open_clip(path, quick_gelu, otherwise)


def _read_transformers(folder: Path, quick_gelu: bool | None) -> TextTower:
    """A CLIPModel, or a CLIPTextModelWithProjection."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds neither config.json nor {OPEN_CLIP_FILE}")
    try:
        config: Any = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:
        # A config.json of strangers can be wrong in any value, and transformers has a type for each.
        raise InputError(f"{folder / 'config.json'} is no configuration of transformers: {_reason(error)}") from error
    if config.model_type not in ("clip", "clip_text_model"):
        raise InputError(f"{folder} is a {config.model_type} model, not CLIP")
    text = config.text_config if config.model_type == "clip" else config
    files = [folder / "model.safetensors"]
    if not files[0].is_file():
        files = sorted(folder.glob("model-*-of-*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no model.safetensors: formats that may hold code (.bin, .pt, .pth) "
                         "are not read")  # fmt: skip
    state: dict[str, Tensor] = {}
    for file in files:
        state |= _load(file, ("text_model.", "text_projection.", "logit_", *_IMAGE_PROJECTIONS))
    act = text.hidden_act if quick_gelu is None else _activation(quick_gelu)
    kept = _config(folder / "config.json", text.num_hidden_layers, text.hidden_size, text.num_attention_heads,
                   text.intermediate_size, text.max_position_embeddings, text.vocab_size, act,
                   text.layer_norm_eps)  # fmt: skip
    places = {f"text_model.{name}": (name,) for name in _shapes(kept)}
    return _assemble(files[0] if len(files) == 1 else folder, kept, state, places)


def _read_open_clip(file: Path, quick_gelu: bool | None, otherwise: bool) -> TextTower:
    """A CLIP, whose text tower lies at the top, or a CustomTextCLIP, where it is `text.`."""
    state = _load(file)
    if any(name.startswith("text.") for name in state):
        state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    state = {name: t for name, t in state.items() if not name.startswith("visual.") or name in _IMAGE_PROJECTIONS}
    first = "transformer.resblocks.0.mlp.c_fc.weight"
    shapes = {name: _shape(file, state, name) for name in ("token_embedding.weight", "positional_embedding", first)}
    (vocabulary, width), positions = shapes["token_embedding.weight"], shapes["positional_embedding"][0]
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
    model, text = _open_clip_config(file.with_name(OPEN_CLIP_CONFIG), {"width": width, "layers": layers})
    if quick_gelu is None:
        quick_gelu = bool(model.get("quick_gelu", otherwise))
    heads = text.get("heads", max(1, width // _HEAD_WIDTH))
    config = _config(file, layers, width, heads, shapes[first][0], positions, vocabulary, _activation(quick_gelu), 1e-5)

    places: dict[str, tuple[str, ...]] = {
        "token_embedding.weight": ("embeddings.token_embedding.weight",),
        "positional_embedding": ("embeddings.position_embedding.weight",),
    }
    for kind in ("weight", "bias"):
        places[f"ln_final.{kind}"] = (f"final_layer_norm.{kind}",)
        for i in range(layers):
            old, new = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
            places[f"{old}.attn.in_proj_{kind}"] = tuple(f"{new}.self_attn.{part}_proj.{kind}" for part in "qkv")
            places |= {f"{old}.{part}.{kind}": (f"{new}.{name}.{kind}",) for part, name in _BLOCK.items()}
    if (parameter := state.pop("text_projection", None)) is not None:
        state[_PROJECTION] = parameter.T  # a plain parameter multiplies from the right, a layer does not
    return _assemble(file, config, state, places)


def _open_clip_config(path: Path, found: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the model and of its text tower; both empty where there is no such file.

    Args:
        path: of the file.
        found: what the tensors say.
    """
    if not path.is_file():
        return {}, {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model = dict(content.get("model_cfg", content))
        text = dict(model["text_cfg"])
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} is no configuration of open_clip: it needs model_cfg.text_cfg ({error!r})") from error
    for key, number in found.items():
        if text.get(key, number) != number:
            raise InputError(f"{path}: text_cfg.{key} is {text[key]}, the tensors beside it have {number}")
    for key, value in text.items():
        # Whatever is off (null, false, an empty mapping) is as in the paper, whichever key it is.
        if key not in _FREE and value and value not in _PLAIN.get(key, ()):
            raise InputError(f"{path}: text_cfg.{key}={value} is not of CLIP's own text tower, the only kind read here")
    if not isinstance(text.get("heads", 1), int):
        raise InputError(f"{path}: text_cfg.heads={text['heads']} must be a whole number")
    return model, {"heads": 8} | text  # eight is what open_clip takes where it is not said


def _config(
    source: Path,
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    positions: int,
    vocabulary: int,
    activation: str,
    eps: float,
) -> CLIPTextConfig:
    """Sizes of the tower and nothing else that the source may hold.

    Raises:
        InputError: another vocabulary than CLIP's, heads that do not divide the width, an unknown activation.
    """
    tokenizer = clip_tokenizer()
    if vocabulary != len(tokenizer):
        raise InputError(f"{source} has a vocabulary of {vocabulary} tokens, CLIP's has {len(tokenizer)}")
    if heads < 1 or width % heads:
        raise InputError(f"{source}: {heads} heads do not divide {width} channels")
    if activation not in ACT2FN:
        raise InputError(f"{source}: hidden_act={activation} is unknown; {nearest(activation, ACT2FN)}")
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        hidden_act=activation,
        layer_norm_eps=eps,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def _assemble(
    source: Path,
    config: CLIPTextConfig,
    state: Mapping[str, Tensor],
    places: Mapping[str, tuple[str, ...]],
) -> TextTower:
    """The tower from tensors of another layout, all of which must have a place.

    Args:
        source: for the messages.
        config: sizes.
        state: tensors by the names of the source.
        places: name in the source -> names in transformers' body; several share the first dimension.

    Raises:
        InputError: tensors that lack, that are left over, or that are of another shape.
    """
    apart = {_PROJECTION, "logit_scale", *_IMAGE_PROJECTIONS, *_BUFFERS}
    _refuse(source, "lacks", {*places, _PROJECTION} - set(state))
    _refuse(source, "is no CLIP text tower: it has", set(state) - set(places) - apart)
    shapes = _shapes(config)
    renamed: dict[str, Tensor] = {}
    for old, names in places.items():
        expected = (len(names) * shapes[names[0]][0], *shapes[names[0]][1:])
        if tuple(state[old].shape) != expected:
            raise InputError(f"{source}: {old} is {tuple(state[old].shape)}, must be {expected}")
        renamed |= dict(zip(names, state[old].float().chunk(len(names)), strict=True))
    if state[_PROJECTION].ndim != 2 or state[_PROJECTION].shape[1] != config.hidden_size:
        raise InputError(f"{source}: the text projection is for {state[_PROJECTION].shape[-1]} channels, the tower has "
                         f"{config.hidden_size}")  # fmt: skip
    body = CLIPTextModel(config)
    body.load_state_dict({name: renamed[_bare(name)] for name in body.state_dict()})
    scale = state.get("logit_scale")
    image = next((state[name].float() for name in _IMAGE_PROJECTIONS if name in state), None)
    return TextTower(
        body,
        state[_PROJECTION].float(),
        None if scale is None else float(scale.flatten()[0]),
        image.T if "visual.proj" in state and image is not None else image,
    )


def _fetch(repository: str) -> Path:
    """Folder of a hub repository with the files of one layout."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, allow_patterns=["config.json", OPEN_CLIP_CONFIG]))
        layout = [OPEN_CLIP_FILE] if (folder / OPEN_CLIP_CONFIG).is_file() else ["model.safetensors", "model-*-of-*"]
        return Path(snapshot_download(repository, allow_patterns=layout))
    except Exception as error:
        # Offline, private, missing: the hub client has a type for each, and all mean the same here.
        raise InputError(f"text={repository} does not exist here and cannot be fetched from the hub: "
                         f"{_reason(error)}") from error  # fmt: skip


def _load(file: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose names start so."""
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys() if name.startswith(prefixes)}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read: {_reason(error)}") from error


def _shape(file: Path, state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Shape of a matrix that the sizes are read from."""
    if name not in state:
        raise InputError(f"{file} is no CLIP of open_clip: it lacks {name}")
    if state[name].ndim != 2:
        raise InputError(f"{file}: {name} is {tuple(state[name].shape)}, must be a matrix")
    return tuple(state[name].shape)


def _shapes(config: CLIPTextConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape in transformers' body, without making it."""
    with torch.device("meta"):
        return {_bare(name): tuple(tensor.shape) for name, tensor in CLIPTextModel(config).state_dict().items()}


def _bare(name: str) -> str:
    """Name of a tensor in transformers' body; releases differ in whether the body lies one level deeper."""
    return name.removeprefix("text_model.")


def _refuse(source: Path, says: str, names: Collection[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(f"{source} {says} {', '.join(sorted(names)[:3])}{more}")


def _activation(quick_gelu: bool) -> str:
    return "quick_gelu" if quick_gelu else "gelu"


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
