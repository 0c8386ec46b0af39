"""Files and folders that load_sam reads or rejects."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from simzss.models.sam.load import load_sam
from tests.support.models import refused, save_bert
from tests.unit.models.sam.tiny import save_first, save_second


def test_places_with_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("missing", "missing.pt", "empty"):
        refused(lambda name=name: load_sam(str(tmp_path / name)), str(tmp_path / name))
    for name in ("missing.pt", "weights/missing.pt"):
        refused(lambda name=name: load_sam(name), f"{name} does not exist")


def test_folder_of_another_kind(tmp_path):
    folder = save_bert(tmp_path / "bert")
    refused(lambda: load_sam(str(folder)), str(folder), "bert model", "sam, sam2")


@pytest.mark.parametrize("save", [save_first, save_second])
def test_folder_that_lacks_or_has_too_much(tmp_path, save, caplog):
    folder = save(tmp_path)
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "mask_decoder.iou_token.weight"
    save_file({key: value for key, value in weights.items() if key != name}, file, {"format": "pt"})
    refused(lambda: load_sam(str(folder)), str(folder), f"lacks {name} (1 tensors)")
    save_file({**weights, name: torch.zeros(2, 32)}, file, {"format": "pt"})
    refused(lambda: load_sam(str(folder)), str(folder))
    file.write_bytes(file.read_bytes()[:5000])
    refused(lambda: load_sam(str(folder)), str(folder))
    with caplog.at_level(logging.WARNING):
        save_file({**weights, "more": torch.zeros(2)}, file, {"format": "pt"})
        load_sam(str(folder))
    assert "1 tensors" in caplog.text and "more" in caplog.text


def test_pickled_weights_in_a_folder(tmp_path):
    folder = save_first(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(lambda: load_sam(str(folder)), str(folder))


@pytest.mark.parametrize(
    ("save", "part", "key", "value", "message"),
    [
        (save_first, "prompt_encoder_config", "image_size", 128, "8 x 8 cells, but its prompts are for 16 x 16"),
        (save_first, "prompt_encoder_config", "patch_size", 7, "no square of whole patches"),
        (save_second, "prompt_encoder_config", "image_size", 64, "8 x 8 cells, but its prompts are for 4 x 4"),
    ],
)
def test_sizes_that_do_not_go_together(tmp_path, save, part, key, value, message):
    folder = save(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config[part][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    refused(lambda: load_sam(str(folder)), str(folder), message)


def test_attention_named_in_a_folder_is_not_fetched(tmp_path):
    folder = save_first(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["_attn_implementation"] = config["attn_implementation"] = "someone/some-kernel"
    (folder / "config.json").write_text(json.dumps(config))
    assert load_sam(str(folder)).model.config._attn_implementation == "sdpa"
