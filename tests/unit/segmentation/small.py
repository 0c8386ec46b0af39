"""Segmenters on a tiny ViT, and a SAM of each generation."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from simzss.models.sam.load import load_sam
from simzss.models.sam.sam import Sam
from simzss.models.settings import ProxySettings
from simzss.models.simzss import SimZSS
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import AggregateSettings, Protocol, SamRefinementSettings, VoteSettings
from tests.support.models import make_backbone, make_scratch, scratch_model, shaken
from tests.unit.models.sam.tiny import save_first, save_second

NAMES = ["cat", "dog", "tree"]
# The tiny models expect much the same IoU of all their masks; some are above these limits and some below.
REDRAWN = SamRefinementSettings(threshold=0.34, min_area=1, min_iou=0.17)
VOTED = VoteSettings(points=4, min_iou=0.52, min_stability=0)
_OWN = ("text_pooling", "refine", "aggregate", "sam", "batch_size", "values")


@cache
def model_of(features: str) -> SimZSS:
    """`scratch_model` with other features; those of a proxy are handed over. Do not change it."""
    if features == "last":
        return scratch_model()
    proxy = ProxySettings(name="sam", beta=1.0) if features == "proxy" else None
    model = SimZSS(make_backbone(proxy, features=features), make_scratch())
    shaken(model.backbone.model)
    return model.eval()


def segmenter(inference: str = "whole", model: SimZSS | None = None, features: str = "last", **changes) -> Segmenter:
    """On small images; `changes` are options of the segmenter, or else of the protocol."""
    options = {name: changes.pop(name) for name in _OWN if name in changes}
    if isinstance(kind := options.get("aggregate"), str):
        options["aggregate"] = AggregateSettings(kind=kind)
    protocol = {"name": "test", "short_side": 64, "crop_size": 64, "stride": 32, "templates": "photo"} | changes
    model = model or model_of(features)
    return Segmenter(model, Protocol(inference=inference, **protocol), precision="32-true", device="cpu", **options)


def pixels_of(image: Image.Image, short_side: int = 64) -> torch.Tensor:
    """(3, H, W) uint8: the short side as asked, both sides to the nearest multiple of 16, bicubic."""
    scale = short_side / min(image.size)
    width, height = (max(16, round(side * scale / 16) * 16) for side in image.size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return v2.functional.resize(pixels, [height, width], interpolation=InterpolationMode.BICUBIC)


def save_sams(folder: Path) -> dict[str, Sam]:
    """Write and load both; the second has no attention to give."""
    return {"first": load_sam(str(save_first(folder / "1"))), "second": load_sam(str(save_second(folder / "2")))}
