"""The model folder: `config.json` + `model.safetensors` (+ `tokenizer/`), written by training, read by everything else.

The folder holds what was trained and the whole text encoder. The backbone is named, with the hash of its weights:
it comes from the hub or from a local file, and another one than the text was trained for is refused. Nothing in the
folder is code, and nothing names code to run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from simzss import __version__
from simzss.errors import InputError
from simzss.models.backbone.base import Backbone
from simzss.models.mask_head.head import HeadConfig, build_head
from simzss.models.simzss import SimZSS
from simzss.models.text import rebuild_text_encoder

FORMAT_VERSION = 1
_BACKBONE_KEYS = ("name", "timm_name", "weights", "features", "project", "image_size")
_PROXY_KEYS = ("name", "timm_name", "weights", "features", "shift", "gain")


def save_model(model: SimZSS, folder: Path, backbone: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write a model folder; its parts are complete before `config.json`, the last one, appears.

    Args:
        model: trained.
        folder: made if missing; files of an earlier model in it are replaced.
        backbone: the arguments that `model.backbone` was built with.
        settings: defaults for use, such as `readout`, and where the model comes from; plain JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config_path = folder / "config.json"
    config_path.unlink(missing_ok=True)
    tokenizer = None
    if model.text_encoder.pooling != "eot":
        model.text_encoder.tokenizer.save_pretrained(str(folder / "tokenizer"))
        tokenizer = "tokenizer"
    named = {key: backbone[key] for key in _BACKBONE_KEYS}
    if model.backbone.weights_file is not None:
        named["weights"] = str(model.backbone.weights_file.resolve())
    if model.backbone.proxy is not None:
        named["proxy"] = _named_proxy(model.backbone)
    config = {
        "format_version": FORMAT_VERSION,
        "simzss": __version__,
        "backbone": named | {"fingerprint": model.backbone.fingerprint},
        "feature_norm": model.feature_norm.mode,
        "text": model.text_encoder.architecture | {"tokenizer": tokenizer},
        "settings": dict(settings),
    }
    if model.multires is not None:
        config["multires"] = {"head": model.multires.config.plain(), "trained": list(model.multires.trained)}
    save_file({name: value.contiguous() for name, value in _saved_state(model).items()}, folder / "model.safetensors")
    config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _named_proxy(backbone: Backbone) -> dict[str, Any]:
    assert backbone.proxy is not None and backbone.guide is not None
    named = {key: backbone.proxy[key] for key in _PROXY_KEYS}
    if backbone.guide.weights_file is not None:
        named["weights"] = str(backbone.guide.weights_file.resolve())
    return named | {"fingerprint": backbone.guide.fingerprint}


def load_model(
    source: str | Path,
    backbone_weights: str | None = None,
    features: str | None = None,
    proxy: Mapping[str, Any] | None = None,
) -> tuple[SimZSS, dict[str, Any]]:
    """Read a model folder, or the hub repository `owner/name`.

    Args:
        source: folder or repository.
        backbone_weights: local file or folder for the backbone, where the recorded place does not hold it.
        features: of the backbone, other ones than the text was trained with; see `Backbone`.
        proxy: the other backbone for `features=proxy`, where it is not the one that the text was trained with.

    Returns:
        The model, in evaluation mode on the CPU, and its `settings`.

    Raises:
        InputError: no model folder, one of another format version, parts that do not fit, another backbone.
    """
    folder = _resolve(source)
    config = _read_config(folder)
    try:
        spec = {key: config["backbone"][key] for key in _BACKBONE_KEYS}
        spec["proxy"] = config["backbone"].get("proxy")
        fingerprint, text, mode = config["backbone"]["fingerprint"], dict(config["text"]), config["feature_norm"]
        settings, head = dict(config["settings"]), config.get("multires")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'} lacks {error}") from error
    if backbone_weights is not None:
        spec["weights"] = backbone_weights
    elif spec["weights"] not in (None, "random") and not Path(spec["weights"]).exists():
        raise InputError(f"backbone weights {spec['weights']} of model {folder} are not there: "
                         "give backbone.weights=FILE")  # fmt: skip
    trained_proxy = spec["proxy"]
    if head is not None and (proxy is not None or features not in (None, spec["features"])):
        raise InputError(f"model {folder} was trained with masks on features={spec['features']}: it takes no others")
    spec["features"] = features or spec["features"]
    if proxy is not None or spec["features"] != "proxy":
        spec["proxy"] = proxy
    try:
        model = _build(folder, spec, fingerprint, text, mode, head)
        if proxy is None and model.backbone.guide is not None:
            _check_proxy(folder, model.backbone.guide, trained_proxy)
        return model, settings
    except InputError as error:
        raise InputError(f"model {folder}: {error}") from error
    except Exception as error:
        # A config.json that was edited or made elsewhere can be wrong in any value; transformers checks few of them.
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder / 'config.json'} describes no model: {type(error).__name__}: {reason}") from error


def _build(
    folder: Path,
    spec: dict[str, Any],
    fingerprint: str,
    text: dict[str, Any],
    mode: str,
    head: Mapping[str, Any] | None,
) -> SimZSS:
    backbone = Backbone(**spec)
    if backbone.fingerprint != fingerprint:
        raise InputError(
            f"backbone weights {spec['weights'] or 'from the hub'} are not those that {folder} was trained with"
        )
    tokenizer_dir = folder / "tokenizer" if text["tokenizer"] is not None else None
    model = SimZSS(backbone, rebuild_text_encoder(text, backbone.width, tokenizer_dir), mode)
    if head is not None:
        trained = head["trained"]
        if not isinstance(trained, list) or not all(isinstance(name, str) for name in trained):
            raise InputError("config.json: multires.trained is no list of names")
        model.multires = build_head(HeadConfig.from_plain(head["head"]), backbone, trained)
    _load_state(model, folder / "model.safetensors")
    return model.eval()


def _check_proxy(folder: Path, guide: Backbone, named: Mapping[str, Any]) -> None:
    if guide.fingerprint != named["fingerprint"]:
        weights = named["weights"] or "from the hub"
        raise InputError(f"weights {weights} of proxy {guide.name} are not those that {folder} was trained with")


def _saved_state(model: SimZSS) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith("backbone.")}


def _load_state(model: SimZSS, path: Path) -> None:
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    expected = _saved_state(model)
    wrong = sorted(set(state) ^ set(expected))
    wrong += [name for name in state if name in expected and state[name].shape != expected[name].shape]
    if wrong:
        raise InputError(f"{path} does not fit its config.json: {', '.join(wrong[:3])}")
    model.load_state_dict(state, strict=False)


def _resolve(source: str | Path) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, str) and len(folder.parts) == 2 and not folder.exists() and not source.startswith("."):
        from huggingface_hub import snapshot_download

        try:
            allowed = ["config.json", "model.safetensors", "tokenizer/*.json", "tokenizer/*.txt"]
            return Path(snapshot_download(source, allow_patterns=allowed))
        except Exception as error:
            # Offline, private, missing: the hub client has a type for each, and all mean the same here.
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"model={source} is no folder and cannot be fetched from the hub: {reason}") from error
    raise InputError(f"model={source} does not exist")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} is no model folder: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version}; this program reads version {FORMAT_VERSION}")
    return config
