"""Towers of a few thousand weights: timm's test models, a scratch tower, a BERT with a vocabulary of its own."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from simzss.errors import InputError
from simzss.models.backbone.base import Backbone
from simzss.models.backbone.timm import TimmBackbone
from simzss.models.build import build_text_encoder
from simzss.models.settings import BackboneSettings, PretrainedText, ProxySettings, ScratchText
from simzss.models.simzss import SimZSS
from simzss.models.text import TextEncoder

TINY_VIT = "test_vit.r160_in1k"
BERT_WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("a", "the", "photo", "of", "cat", "dog", "##s", ".", "grass", "green", "##ish", "tree", "is", "here", "there"),
]


def backbone_settings(**changes: Any) -> BackboneSettings:
    """Settings of an untrained ViT of 64 channels for images of 64 pixels."""
    return BackboneSettings(**{"name": "tiny", "timm_name": TINY_VIT, "weights": "random", "image_size": 64} | changes)


def make_backbone(proxy: ProxySettings | None = None, **changes: Any) -> Backbone:
    """Build the backbone of `backbone_settings`, untrained but the same every time."""
    torch.manual_seed(0)
    return TimmBackbone(backbone_settings(**changes), proxy)


def shaken(model: torch.nn.Module, seed: int = 0, amount: float = 0.1) -> torch.nn.Module:
    """Add noise to every parameter, so that no bias is zero and no scale is one; return the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return model


def save_backbone(path: Path, seed: int = 0, **changes: Any) -> Path:
    """Write weights (.safetensors) of the `backbone_settings` model, shaken by `seed`; return the path."""
    state = shaken(make_backbone(**changes).model, seed).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def make_scratch(width: int = 64, context_length: int = 16) -> TextEncoder:
    """Build a scratch tower of two layers, the same every time, in evaluation mode."""
    torch.manual_seed(1)
    settings = ScratchText(layers=2, width=32, heads=4, context_length=context_length)
    return build_text_encoder(settings, width).eval()


def save_bert(folder: Path, *, layers: int = 3, positions: int = 24) -> Path:
    """Write a transformers folder of a random BERT with a fast WordPiece tokenizer; return it."""
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(BERT_WORDS),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: i for i, word in enumerate(BERT_WORDS)}).save_pretrained(folder)
    return folder


def make_bert(folder: Path, width: int = 64, **changes: Any) -> TextEncoder:
    """Build an encoder on `save_bert`'s folder."""
    torch.manual_seed(3)
    settings = PretrainedText(**{"weights": str(folder), "trainable_layers": 1, "context_length": 20} | changes)
    return build_text_encoder(settings, width)


@cache
def scratch_model() -> SimZSS:
    """Return a whole model on untrained towers, weights well spread; do not change it."""
    model = SimZSS(make_backbone(), make_scratch())
    shaken(model.backbone.model)
    return model.eval()


def encode_alone(encoder: Any, text: str) -> tuple[Any, Any]:
    """Return tokens and features of one text by itself: no padding, no neighbours."""
    tokens = encoder.tokenize([text])
    ids = torch.tensor(tokens["input_ids"])
    with torch.no_grad():
        return tokens, encoder(ids, torch.ones_like(ids))


class Harmful:
    """Make a folder when unpickled, as an attacker's pickle could."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def refused(make: Any, *parts: str) -> str:
    """Assert that `make()` ends as one clear line that names the parts; return it."""
    with pytest.raises(InputError) as caught:
        make()
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message and len(message) < 600, message
    return message
