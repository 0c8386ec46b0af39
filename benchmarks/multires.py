"""Rows `multires_…`: the head with masks against a sliding-window ensemble at the same resolution.

The ensemble is the straightforward way to more pixels than the backbone was made for: overlapping windows of its size,
half a window apart, whose scores are averaged (`inference=slide`). Ours sees windows that do not overlap and the whole
image, in one forward, and the head makes masks of them. Backbone, weights, precision and class vectors are the same
objects on both sides; weights are random, which changes no time. At 2x the ensemble has 9 windows where ours has 4 and
the whole image, at 3x 25 where ours has 9.

On an accelerator a forward has `TOGETHER` photos, and memory is the accelerator's.

The last lines are the cost of a training step of `experiment=mrovseg`: measured on an accelerator; on a processor by
calculation from a step of one crop.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from benchmarks.peaks import Peak, apart
from benchmarks.rows import Row, throughput
from benchmarks.runs import matmul_precision
from simzss import config as conf
from simzss.device import allocator, best_device, resolve_precision
from simzss.losses.mask import MaskLossConfig
from simzss.models.backbone.base import Backbone
from simzss.models.mask_head.cost import Cost, measure_cost
from simzss.models.mask_head.head import HeadConfig, build_head
from simzss.models.simzss import SimZSS
from simzss.models.text import build_text_encoder
from simzss.segmentation.protocol import WHOLE_336
from simzss.segmentation.segmenter import Segmenter
from simzss.training.data.masks import MaskBatch
from simzss.training.mask_module import MaskModule
from simzss.training.optim import OptimConfig
from simzss.training.run import build_model

CLASSES = 171
WINDOW = 224
SCALES = (2, 3)
TOGETHER = 16
COMMAND = "make bench BENCH=multires"


def run() -> list[Row]:
    """Two rows for each resolution, then the cost of the full-size step, printed."""
    rows = []
    for scale in SCALES:
        ours, baseline = sides(scale)
        row = throughput("multires", f"multires_forward_{scale}x", "images/s", _photos(), ours, baseline, runs=3)
        rows.append(row)
    for scale in SCALES:
        found = [apart(_peak, scale, side) for side in (0, 1)]
        rows.append(Row(f"multires_memory_{scale}x", "MB", found[0], found[1], found[1] / found[0], COMMAND))
    print(full_size())
    return rows


def _photos() -> int:
    return 1 if best_device().type == "cpu" else TOGETHER


def sides(scale: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Labels of square photos by the head, and by the ensemble; CLIP ViT-B/16's shapes."""
    options = conf.to_plain(conf.load_choice("backbone", "clip_vitb16")) | {"weights": "random"}
    text = conf.to_plain(conf.load_choice("text", "clip_small"))
    plain = build_model(options, text, seed=0)
    side = scale * WINDOW
    slide = replace(WHOLE_336, inference="slide", short_side=side, crop_size=WINDOW, stride=WINDOW // 2)
    names = [f"class {number}" for number in range(CLASSES)]
    segmenter = Segmenter(plain, replace(slide, templates="photo"), batch_size=32)
    classifier = segmenter.set_classes(names).classifier
    ours = SimZSS(plain.backbone, plain.text_encoder)
    config = conf.to_plain(conf.load_choice("multires", "mrovseg"))
    ours.multires = build_head(HeadConfig.from_plain(config | {"scale": scale}), plain.backbone)
    by_head = Segmenter(ours, replace(WHOLE_336, templates="photo"), batch_size=32)
    by_head.classifier = classifier
    photos = [Image.effect_noise((side, side), 60).convert("RGB") for _ in range(_photos())]
    return (lambda: _labels(by_head, photos)), (lambda: _labels(segmenter, photos))


def _labels(segmenter: Segmenter, photos: Sequence[Image.Image]) -> list[Any]:
    return [prediction.mask for prediction in segmenter.predict_batch(photos)]


def _peak(scale: int, side: int) -> float:
    """Megabytes that labelling a photo adds to what this process holds, at their peak."""
    action = sides(scale)[side]
    action()  # loads what it needs
    peak = Peak()
    action()
    return peak.megabytes()


def full_size() -> str:
    """Cost of a step of `experiment=mrovseg` on CLIP ViT-L/14.

    Measured on an accelerator. On a processor the memory of one crop is counted and multiplied, all in float32, which
    is no less than an accelerator takes in bfloat16: processors without it would take an hour for a step in it.
    """
    plain = conf.to_plain(conf.compose("train_masks", ["experiment=mrovseg"]))
    backbone = conf.to_plain(conf.load_choice("backbone", "clip_vitl14")) | {"weights": "random"}
    backbone.pop("feature_norm")
    wanted, device = plain["masks"]["batch_size"], best_device()
    memory = allocator(device)
    crops, precision = (1, "32-true") if memory is None else (wanted, resolve_precision("auto", device))
    cost = step_cost(plain, Backbone(**backbone).use_precision(precision), crops, precision)
    facts = f"trainable parameters {cost.trainable / 1e6:.1f} M, frozen {cost.frozen / 1e6:.0f} M"
    if memory is not None:
        peak = memory.max_memory_reserved(device) / 2**30
        return (
            f"experiment=mrovseg, {precision}: {facts}; {cost.gigabytes():.2f} GiB with {crops} crops a step, at most "
            f"{peak:.2f} GiB held by the allocator; a step took {cost.seconds:.3f} s"
        )
    return (
        f"experiment=mrovseg: {facts}; by calculation {cost.gigabytes(wanted):.1f} GiB with {wanted} crops a step "
        f"({cost.fixed / 2**30:.2f} GiB fixed, {cost.live / 2**30:.2f} GiB a crop); one crop took {cost.seconds:.1f} s"
    )


def step_cost(plain: dict[str, Any], backbone: Backbone, crops: int, precision: str) -> Cost:
    """Cost of a step as `plain` configures it; the text encoder has no part in a step, and is small."""
    text = conf.to_plain(conf.load_choice("text", "clip_small"))
    model = SimZSS(backbone, build_text_encoder(text.pop("kind"), backbone.width, **text))
    config = HeadConfig.from_plain(plain["multires"])
    model.multires = build_head(config, backbone)
    names = [(f"class {number}",) for number in range(CLASSES)]
    loss, optim = MaskLossConfig(**plain["mask_loss"]), OptimConfig.from_plain(plain["optim"])
    module = MaskModule(model, names, loss, optim, WHOLE_336, "concept", 0).to(best_device())
    module.words = torch.nn.functional.normalize(torch.randn(CLASSES, backbone.width), dim=-1).to(module.device)
    batch: MaskBatch = module.rehearsal_batch(crops, config.scale * config.window)

    mixed = torch.autocast(module.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    with matmul_precision(precision):
        return measure_cost(model, module.head, lambda: module.rehearse(batch, mixed))
