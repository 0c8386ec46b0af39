"""The model folder: `config.json`, `model.safetensors`, `SHA256SUMS` and, for a pretrained text encoder, `tokenizer/`.

The folder holds what was trained and the whole text encoder. The backbone is named, with the hash of its weights:
it comes from the hub or from a local file, and another one than the text was trained for is rejected. Nothing in the
folder is code, nothing names code to run, and nothing is built that its tensors would not fill. Files keep the names
of format version 1, which `simzss.settings.renamed` translates.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from simzss import __version__
from simzss.atomic import atomic_write, write_tensors
from simzss.checksums import SUMS
from simzss.errors import InputError, ModelError, nearest
from simzss.models.backbone.base import Backbone
from simzss.models.backbone.timm import TimmBackbone
from simzss.models.folder import check_inside, check_sums, find_folder, replaced_folder
from simzss.models.mask_head.head import build_mask_head
from simzss.models.record import BACKBONE_KEYS, FORMAT_VERSION, check_record, read_config
from simzss.models.settings import BackboneSettings, MaskHeadSettings, ProxySettings, TextPooling
from simzss.models.simzss import SimZSS
from simzss.models.sizes import Shapes
from simzss.models.tensors import read_tensors, tensor_shapes
from simzss.models.text import rebuild_text_encoder
from simzss.models.tokenizer import clip_tokenizer, directory_tokenizer
from simzss.program import system_failure
from simzss.settings.renamed import in_old_names, renamed_file

_FILES = ("config.json", "model.safetensors", "tokenizer", SUMS)


def save_model(model: SimZSS, folder: Path) -> None:
    """Write a model folder; an earlier one stays as it was until the new one takes its place.

    Args:
        model: trained.
        folder: created if missing; an earlier model in it is replaced, other files in it are kept.

    Raises:
        ModelError: another process writes this folder.
        OSError: the disk is full, or the folder cannot be written.
    """
    with replaced_folder(folder, _FILES) as new:
        tokenizer = None
        if model.text_encoder.pooling != "eot":
            model.text_encoder.tokenizer.save_pretrained(str(new / "tokenizer"))
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
        write_tensors(new / "model.safetensors", _saved_state(model))
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        atomic_write(new / "config.json", text.encode(errors="backslashreplace"))


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
    check_inside(folder, _FILES)
    config = read_config(folder)
    check_sums(folder)
    try:
        shapes = tensor_shapes(folder / "model.safetensors")
        check_record(folder / "config.json", config, shapes)
        own = backbone or _load_backbone(config, backbone_weights, features, proxy)
        return _load(folder, config, own, shapes).eval()
    except KeyError as error:
        raise ModelError(f"{folder / 'config.json'} lacks {error}") from error
    except InputError as error:
        raise ModelError(str(error) if str(folder) in str(error) else f"model {folder}: {error}") from error
    except Exception as error:
        if not isinstance(error, OSError) and system_failure(error) is not None:
            raise  # for want of memory
        # A config.json that was edited or made elsewhere can be wrong in any value; transformers checks few of them.
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder / 'config.json'} describes no model: {type(error).__name__}: {reason}") from error


# Backbone -------------------------------------------------------------------------------------------------------------


def _load_backbone(
    config: Mapping[str, Any], weights: str | None, features: str | None, proxy: ProxySettings | None
) -> Backbone:
    """Build the recorded backbone with the changes that are asked for."""
    record = config["backbone"]
    known = {key: record[key] for key in BACKBONE_KEYS}
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
    record: dict[str, Any] = {key: getattr(backbone.settings, key) for key in BACKBONE_KEYS} | _place(backbone)
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


def _load(folder: Path, config: Mapping[str, Any], backbone: Backbone, shapes: Shapes) -> SimZSS:
    """Build the recorded model on a backbone and fill it, after its file of tensors is known to fit."""
    if backbone.fingerprint != config["backbone"]["fingerprint"]:
        weights = backbone.settings.weights or "from the hub"
        raise ModelError(f"backbone weights {weights} are not those that it was trained with")
    if config["text"]["tokenizer"] not in (None, "tokenizer"):
        raise ModelError(f"config.json: text.tokenizer={config['text']['tokenizer']} must be tokenizer or null")
    known = config["text"]["tokenizer"] is None
    tokenizer = clip_tokenizer() if known else directory_tokenizer(folder / "tokenizer")
    assert backbone.width > 0  # measured on an image, which needs memory
    with torch.device("meta"):  # without memory for tensors: the file may hold less than config.json claims
        expected = {
            name: tuple(tensor.shape) for name, tensor in _saved_state(_build(config, backbone, tokenizer)).items()
        }
    path = folder / "model.safetensors"
    wrong = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if wrong:
        raise ModelError(f"{path} does not fit its config.json: {', '.join(wrong[:3])}")
    model = _build(config, backbone, tokenizer)
    state = {re.sub("^multires", "mask_head", name): value for name, value in read_tensors(path).items()}
    model.load_state_dict(state, strict=False)
    return model


def _build(config: Mapping[str, Any], backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> SimZSS:
    """Build the recorded model on a backbone, weights still random."""
    head, info = config.get("multires"), dict(config["settings"])
    model = SimZSS(backbone, rebuild_text_encoder(config["text"], backbone.width, tokenizer), config["feature_norm"])
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


# Files ----------------------------------------------------------------------------------------------------------------


def _resolve(source: str | Path) -> Path:
    """Return the folder of a source, fetched from the hub where it is no local one."""
    folder = find_folder(Path(source))
    if folder.is_dir():
        return folder
    if isinstance(source, str) and len(folder.parts) == 2 and not folder.exists() and not source.startswith("."):
        from huggingface_hub import snapshot_download

        try:
            kinds = ("json", "txt", "model", "jinja")
            allowed = ["config.json", "model.safetensors", SUMS, *(f"tokenizer/*.{kind}" for kind in kinds)]
            return Path(snapshot_download(source, allow_patterns=allowed))
        except Exception as error:
            # Offline, private, missing: the hub client has a type for each, and all mean the same here.
            reason = " ".join(str(error).split())[:120]
            raise ModelError(f"model={source} is no folder and cannot be fetched from the hub: {reason}") from error
    raise ModelError(f"model={source} does not exist")
