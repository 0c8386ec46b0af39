"""CLIP's text tower from files of transformers or open_clip; tensors are read from safetensors alone."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from open_clip.model import CLIPTextCfg, convert_to_custom_text_state_dict
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from simzss.errors import ModelError
from simzss.models.pretrained import load_pretrained, read_pretrained_config, reason, weight_files
from simzss.models.sizes import check_numbers, check_total
from simzss.models.tensors import read_tensors
from simzss.models.tokenizer import clip_tokenizer

OPEN_CLIP_FILE = "open_clip_model.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"
_HEAD_WIDTH = 64  # of the text towers of open_clip, where no configuration says otherwise
_IMAGE_PROJECTIONS = ("visual_projection.weight", "visual.head.proj.weight", "visual.proj")
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "max_position_embeddings", "hidden_act", "layer_norm_eps")  # fmt: skip
# Text settings of open_clip that do not change the kind of tower; any other must have its default.
_FREE = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id", "eos_id", "output_tokens"}
_OPEN_CLIP_NAMES = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.": "embeddings.token_embedding.",
    "transformer.resblocks.": "encoder.layers.",
    ".attn.": ".self_attn.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    "ln_final.": "final_layer_norm.",
}
"""Parts of the names of open_clip's text tower, and what they are in transformers."""


@dataclass(frozen=True)
class TextTower:
    """CLIP's text tower.

    Args:
        body: transformer over tokens, float32.
        projection: (D, C), from its C channels into the joint space.
        logit_scale: log of the factor on cosines; None where the weights come without it.
        image_projection: (D, V) of the image tower, which identifies the pair; None if not there.
    """

    body: Any
    projection: Tensor
    logit_scale: float | None
    image_projection: Tensor | None


def read_text_tower(text: str, quick_gelu: bool | None = None, otherwise: bool = False) -> TextTower:
    """Read the text tower of a CLIP.

    Args:
        text: transformers folder, .safetensors file of open_clip, folder that holds `open_clip_model.safetensors`, or
            hub repository `owner/name` of either layout.
        quick_gelu: activation of the tower; None for that of its configuration.
        otherwise: `quick_gelu` where no configuration says it.

    Raises:
        ModelError: nothing there, no CLIP, missing or unexpected tensors, another vocabulary.
    """
    path = Path(text)
    if not path.exists():
        if text.startswith((".", "/", "~")) or len(path.parts) != 2 or path.suffix == ".safetensors":
            raise ModelError(f"text={text} does not exist")
        path = _fetch(text)
    if path.is_dir() and (path / OPEN_CLIP_FILE).is_file():
        path = path / OPEN_CLIP_FILE
    if not path.is_dir() and path.suffix != ".safetensors":
        raise ModelError(f"text={text} is no .safetensors file: formats that may hold code are not read")
    try:
        return _read_transformers(path, quick_gelu) if path.is_dir() else _read_open_clip(path, quick_gelu, otherwise)
    except ModelError:
        raise
    except Exception as error:
        # Files of strangers can be wrong in any value, and the libraries have a type of error for each.
        raise ModelError(f"text={path} is no text tower of CLIP: {reason(error)}") from error


def _read_transformers(folder: Path, quick_gelu: bool | None) -> TextTower:
    """Read a CLIPModel, or a CLIPTextModelWithProjection."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json with model.safetensors, and no {OPEN_CLIP_FILE}")
    found = read_pretrained_config(folder)
    if found.model_type not in ("clip", "clip_text_model"):
        raise ModelError(f"{folder} is a {found.model_type} model, not CLIP")
    text = found.text_config if found.model_type == "clip" else found
    sizes = {key: getattr(text, key) for key in _SIZES}
    config = _config(folder, **sizes | ({} if quick_gelu is None else {"hidden_act": _activation(quick_gelu)}))
    body, loading = load_pretrained(CLIPTextModel, folder, config, _wanted)
    beside = ("text_projection.weight", "logit_scale", *_IMAGE_PROJECTIONS)
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        state |= read_tensors(file, beside.__contains__)
    _reject(folder, "lacks", loading["missing_keys"] | {"text_projection.weight"} - set(state))
    return _tower(folder, body, state["text_projection.weight"], state)


def _read_open_clip(file: Path, quick_gelu: bool | None, otherwise: bool) -> TextTower:
    """Read a CLIP, with its text tower at the top, or a CustomTextCLIP, where it is `text.`."""
    state = convert_to_custom_text_state_dict(read_tensors(file, _wanted))
    tower = {name.removeprefix("text."): tensor for name, tensor in state.items() if name.startswith("text.")}
    first = "transformer.resblocks.0.mlp.c_fc.weight"
    _reject(file, "lacks", {"text_projection", "positional_embedding", "token_embedding.weight", first} - set(tower))
    others = {name for name in state if not name.startswith(("text.", "visual."))}
    _reject(file, "is no CLIP text tower: it has", others - {"logit_scale", "attn_mask"})
    cfg, configured = _open_clip_config(file.with_name(OPEN_CLIP_CONFIG))
    if cfg is None:
        (vocabulary, width), positions = tower["token_embedding.weight"].shape, len(tower["positional_embedding"])
        layers = len({name.split(".")[2] for name in tower if name.startswith("transformer.resblocks.")})
        cfg = CLIPTextCfg(positions, vocabulary, width=width, heads=max(1, width // _HEAD_WIDTH), layers=layers,
                          mlp_ratio=len(tower[first]) / width)  # fmt: skip
    quick = next(choice for choice in (quick_gelu, configured, otherwise) if choice is not None)
    sizes = (cfg.vocab_size, cfg.width, round(cfg.width * cfg.mlp_ratio), cfg.layers, cfg.heads, cfg.context_length)
    config = _config(file, **dict(zip(_SIZES, (*sizes, _activation(quick), 1e-5), strict=True)))
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_numbers(config.to_dict(), shapes)
    check_total(lambda: CLIPTextModel(config), shapes)
    body = CLIPTextModel(config)
    projection = tower.pop("text_projection").T  # a plain parameter multiplies from the right, a layer does not
    tower.pop("attn_mask", None)
    getattr(body, "text_model", body).load_state_dict(_transformers_names(tower))
    return _tower(file, body, projection, state)


def _open_clip_config(path: Path) -> tuple[CLIPTextCfg | None, bool | None]:
    """Return the settings of the text tower, and `quick_gelu`; None where nothing says them."""
    if not path.is_file():
        return None, None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model = content.get("model_cfg", content)
        text, quick = CLIPTextCfg(**model["text_cfg"]), model.get("quick_gelu")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(f"{path} is no configuration of open_clip: it needs model_cfg.text_cfg ({error!r})") from error
    usual = asdict(CLIPTextCfg())
    for key, value in asdict(text).items():
        if key not in _FREE and (value or None) != (usual[key] or None) and (key, value) != ("pool_type", "eos"):
            raise ModelError(f"{path}: text_cfg.{key}={value} is not of CLIP's own text tower, the only kind read here")
    return text, quick


def _transformers_names(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of open_clip's text tower, and split its joint query, key and value."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tower.items():
        for theirs, ours in _OPEN_CLIP_NAMES.items():
            name = name.replace(theirs, ours)
        if ".in_proj_" in name:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            renamed |= {name.replace("in_proj_", f"{part}_proj."): own for part, own in parts}
        else:
            renamed[name] = tensor
    return renamed


def _config(source: Path, **sizes: Any) -> CLIPTextConfig:
    """Return the sizes of the tower and nothing else that the source may hold.

    Raises:
        ModelError: another vocabulary than CLIP's.
    """
    tokenizer = clip_tokenizer()
    if sizes["vocab_size"] != len(tokenizer):
        raise ModelError(f"{source} has a vocabulary of {sizes['vocab_size']} tokens, CLIP's has {len(tokenizer)}")
    end = tokenizer.eos_token_id
    return CLIPTextConfig(**sizes, bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end)


def _tower(source: Path, body: Any, projection: Tensor, state: dict[str, Tensor]) -> TextTower:
    """Join the body with the tensors beside it."""
    if projection.ndim != 2 or projection.shape[1] != body.config.hidden_size:
        raise ModelError(f"{source}: the text projection is for {projection.shape[-1]} channels, the tower has "
                         f"{body.config.hidden_size}")  # fmt: skip
    scale = state.get("logit_scale")
    image = next((state[name].float() for name in _IMAGE_PROJECTIONS if name in state), None)
    return TextTower(
        body,
        projection.float(),
        None if scale is None else float(scale.flatten()[0]),
        image.T if "visual.proj" in state and image is not None else image,
    )


def _fetch(repository: str) -> Path:
    """Download one layout of a hub repository; return its folder."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, allow_patterns=["config.json", OPEN_CLIP_CONFIG]))
        layout = OPEN_CLIP_FILE if (folder / OPEN_CLIP_CONFIG).is_file() else "model*.safetensors*"
        return Path(snapshot_download(repository, allow_patterns=layout))
    except Exception as error:
        # Offline, private, missing: the hub client has a type for each, and all mean the same here.
        raise ModelError(f"text={repository} does not exist here and cannot be fetched from the hub: "
                         f"{reason(error)}") from error  # fmt: skip


def _wanted(name: str) -> bool:
    """Tell whether a tensor is of use: of the image tower, only its projection is."""
    return name in _IMAGE_PROJECTIONS or not name.startswith(("visual.", "vision_model."))


def _reject(source: Path, says: str, names: Iterable[str]) -> None:
    """Raise an error that lists names, if there are any."""
    if names := sorted(names):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelError(f"{source} {says} {', '.join(names[:3])}{more}")


def _activation(quick_gelu: bool) -> str:
    return "quick_gelu" if quick_gelu else "gelu"
