"""The model folder: `config.json`, `model.safetensors` and, for a pretrained text encoder, `tokenizer/`.

The folder holds what was trained and the whole text encoder. The backbone is named, with the hash of its weights:
it comes from the hub or from a local file, and another one than the text was trained for is rejected. Nothing in the
folder is code, and nothing names code to run. Files keep the names of format version 1, which
`simzss.settings.renamed` translates.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from simzss import __version__
from simzss.atomic import atomic_write
from simzss.errors import InputError, ModelError, nearest
from simzss.models.backbone.base import Backbone
from simzss.models.backbone.timm import TimmBackbone
from simzss.models.mask_head.head import build_mask_head
from simzss.models.settings import BackboneSettings, MaskHeadSettings, ProxySettings, TextPooling
from simzss.models.simzss import SimZSS
from simzss.models.text import rebuild_text_encoder
from simzss.settings.renamed import in_old_names, renamed_file

FORMAT_VERSION = 1
_BACKBONE_KEYS = ("name", "timm_name", "weights", "features", "project", "image_size")


def save_model(model: SimZSS, folder: Path) -> None:
    """Write a model folder; its parts are complete before `config.json`, the last one, appears.

    Args:
        model: trained.
        folder: created if missing; files of an earlier model in it are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config_path = folder / "config.json"
    config_path.unlink(missing_ok=True)
    tokenizer = None
    if model.text_encoder.pooling != "eot":
        model.text_encoder.tokenizer.save_pretrained(str(folder / "tokenizer"))
        tokenizer = "tokenizer"
    config = {
        "format_version": FORMAT_VERSION,
        "simzss": __version__,
        "backbone": _backbone_record(model.backbone),
        "feature_norm": model.feature_norm.mode,
        "text": model.text_encoder.architecture | {"tokenizer": tokenizer},
        "settings": _info_record(model),
    }
    if model.mask_head is not None:
        head = in_old_names(model.mask_head.settings.plain(), "mask_head.")
        config["multires"] = {"head": head, "trained": list(model.mask_head.trained)}
    save_file({name: value.contiguous() for name, value in _saved_state(model).items()}, folder / "model.safetensors")
    atomic_write(config_path, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())


def load_model(
    source: str | Path,
    backbone_weights: str | None = None,
    features: str | None = None,
    proxy: ProxySettings | None = None,
    backbone: Backbone | None = None,
) -> SimZSS:
    """Read a model folder, or the hub repository `owner/name`.

    Args:
        source: folder or repository.
        backbone_weights: local file or folder for the backbone, where the recorded path does not hold it.
        features: features of the backbone other than those the text was trained with; see `BackboneSettings`.
        proxy: proxy for `features=proxy`, where it is not the one that the text was trained with.
        backbone: the backbone itself, where it is one of your own.

    Returns:
        The model in evaluation mode on the CPU; its `info` and `text_pooling` are those of the folder.

    Raises:
        ModelError: no model folder, one of another format version, parts that do not fit, another backbone.
    """
    folder = _resolve(source)
    config = _read_config(folder)
    try:
        model = _build(folder, config, backbone or _load_backbone(config, backbone_weights, features, proxy))
        _load_state(model, folder / "model.safetensors")
        return model.eval()
    except KeyError as error:
        raise ModelError(f"{folder / 'config.json'} lacks {error}") from error
    except InputError as error:
        raise ModelError(f"model {folder}: {error}") from error
    except Exception as error:
        # A config.json that was edited or made elsewhere can be wrong in any value; transformers checks few of them.
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder / 'config.json'} describes no model: {type(error).__name__}: {reason}") from error


# Backbone -------------------------------------------------------------------------------------------------------------


def _load_backbone(
    config: Mapping[str, Any], weights: str | None, features: str | None, proxy: ProxySettings | None
) -> Backbone:
    """Build the recorded backbone with the changes that are asked for."""
    record = config["backbone"]
    known = {key: record[key] for key in _BACKBONE_KEYS}
    settings = BackboneSettings.of(known | {"feature_norm": config["feature_norm"]})
    if weights is not None:
        settings = settings.replace(weights=weights)
    elif settings.weights not in (None, "random") and not Path(settings.weights).exists():
        raise ModelError(f"backbone weights {settings.weights} are not there: give backbone.weights=FILE")
    asked = proxy is not None and proxy.name is not None
    if config.get("multires") is not None and (asked or features not in (None, settings.features)):
        raise ModelError(f"it was trained with masks on features={settings.features}: it takes no others")
    if features is not None:
        settings = settings.replace(features=features)
    recorded = record.get("proxy") if settings.features == "proxy" else None
    if asked or recorded is None:
        return TimmBackbone(settings, proxy)
    backbone = TimmBackbone(settings, _read_proxy(recorded))
    own = backbone.proxy_backbone
    if own is not None and own.fingerprint != recorded["fingerprint"]:
        raise ModelError(f"weights {recorded['weights'] or 'from the hub'} of proxy {own.name} are not those that it "
                         "was trained with")  # fmt: skip
    return backbone


def _backbone_record(backbone: Backbone) -> dict[str, Any]:
    record: dict[str, Any] = {key: getattr(backbone.settings, key) for key in _BACKBONE_KEYS} | _place(backbone)
    if backbone.proxy is not None:
        own = backbone.proxy_backbone
        known = {} if own is None else _place(own) | {"fingerprint": own.fingerprint}
        record["proxy"] = in_old_names(backbone.proxy.plain(), "proxy.") | known
    return record | {"fingerprint": backbone.fingerprint}


def _place(backbone: Backbone) -> dict[str, str]:
    """Return the absolute path of a backbone's weights, if it has a file."""
    return {} if backbone.weights_file is None else {"weights": str(backbone.weights_file.resolve())}


def _read_proxy(record: Mapping[str, Any]) -> ProxySettings:
    values = renamed_file(dict(record), "proxy.")
    return ProxySettings.of({key: values[key] for key in ProxySettings.model_fields})


# The rest of the model ------------------------------------------------------------------------------------------------


def _build(folder: Path, config: Mapping[str, Any], backbone: Backbone) -> SimZSS:
    """Build the recorded model on a backbone, weights still random."""
    text, head, info = dict(config["text"]), config.get("multires"), dict(config["settings"])
    if backbone.fingerprint != config["backbone"]["fingerprint"]:
        weights = backbone.settings.weights or "from the hub"
        raise ModelError(f"backbone weights {weights} are not those that it was trained with")
    tokenizer = folder / "tokenizer" if text["tokenizer"] is not None else None
    model = SimZSS(backbone, rebuild_text_encoder(text, backbone.width, tokenizer), config["feature_norm"])
    if head is not None:
        trained = head["trained"]
        if not isinstance(trained, list) or not all(isinstance(name, str) for name in trained):
            raise ModelError("config.json: multires.trained is no list of names")
        settings = MaskHeadSettings.of(renamed_file(head["head"], "mask_head."))
        model.mask_head = build_mask_head(settings, backbone, trained)
    model.text_pooling = _read_pooling(info.pop("readout", "tokens"))
    model.info = _with_proxy_names(info, renamed_file)
    return model


def _read_pooling(readout: Any) -> TextPooling:
    pooling: TextPooling = renamed_file({"readout": readout})["text_pooling"]
    if pooling not in get_args(TextPooling):
        raise ModelError(
            f"config.json: settings.readout={readout} is unknown; {nearest(str(readout), get_args(TextPooling))}"
        )
    return pooling


def _info_record(model: SimZSS) -> dict[str, Any]:
    return in_old_names({"text_pooling": model.text_pooling}) | _with_proxy_names(model.info, in_old_names)


def _with_proxy_names(
    info: Mapping[str, Any], translate: Callable[[dict[str, Any], str], dict[str, Any]]
) -> dict[str, Any]:
    """Translate the keys of the proxy inside `untrained.backbone`, the only ones of `info` that have other names."""
    info = dict(info)
    untrained = info.get("untrained")
    backbone = untrained.get("backbone") if isinstance(untrained, dict) else None
    if isinstance(untrained, dict) and isinstance(backbone, dict) and isinstance(backbone.get("proxy"), dict):
        info["untrained"] = untrained | {"backbone": backbone | {"proxy": translate(backbone["proxy"], "proxy.")}}
    return info


# Tensors --------------------------------------------------------------------------------------------------------------


def _saved_state(model: SimZSS) -> dict[str, Tensor]:
    """Return the tensors of a folder by the names of its file."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("backbone.")}
    return {re.sub("^mask_head", "multires", name): value for name, value in state.items()}


def _load_state(model: SimZSS, path: Path) -> None:
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    expected = _saved_state(model)
    wrong = sorted(set(state) ^ set(expected))
    wrong += [name for name in state if name in expected and state[name].shape != expected[name].shape]
    if wrong:
        raise ModelError(f"{path} does not fit its config.json: {', '.join(wrong[:3])}")
    model.load_state_dict(
        {re.sub("^multires", "mask_head", name): value for name, value in state.items()}, strict=False
    )


# Files ----------------------------------------------------------------------------------------------------------------


def _resolve(source: str | Path) -> Path:
    """Return the folder of a source, fetched from the hub where it is no local one."""
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
            raise ModelError(f"model={source} is no folder and cannot be fetched from the hub: {reason}") from error
    raise ModelError(f"model={source} does not exist")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is no model folder: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise ModelError(f"{path} has format version {version}; this program reads version {FORMAT_VERSION}")
    return config
