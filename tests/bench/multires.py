"""Rows `multires_…`: the head with masks against a sliding-window ensemble at the same resolution.

The ensemble is the straightforward way to more pixels than the backbone was made for: overlapping windows of its size,
half a window apart, whose scores are averaged (`inference=slide`). Ours sees windows that do not overlap and the whole
image, in one forward, and the head makes masks of them. Backbone, weights, precision and class vectors are the same
objects on both sides; weights are random, which changes no time. At 2x the ensemble has 9 windows where ours has 4 and
the whole image, at 3x 25 where ours has 9.

The last lines are the cost of a training step of `experiment=mrovseg`, from a step of one image on this machine.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from simzss import config as conf
from simzss.data.masks import MaskBatch
from simzss.losses.masks import MaskLossConfig
from simzss.models.backbone import Backbone
from simzss.models.simzss import SimZSS
from simzss.models.text import build_text_encoder
from simzss.multires.cost import Cost, measure_cost
from simzss.multires.head import HeadConfig, build_head
from simzss.segmentation.protocol import WHOLE_336
from simzss.segmentation.segmenter import Segmenter
from simzss.training.mask_module import MaskModule
from simzss.training.optim import OptimConfig
from simzss.training.run import build_model
from tests.bench.peaks import Peak, apart
from tests.bench.rows import Row, throughput

CLASSES = 171
WINDOW = 224
SCALES = (2, 3)
COMMAND = "make bench BENCH=multires"


def run() -> list[Row]:
    """Two rows for each resolution, then the cost of the full-size step, printed."""
    rows = []
    for scale in SCALES:
        ours, baseline = sides(scale)
        rows.append(throughput("multires", f"multires_forward_{scale}x", "images/s", 1, ours, baseline, runs=3))
    for scale in SCALES:
        found = [apart(_peak, scale, side) for side in (0, 1)]
        rows.append(Row(f"multires_memory_{scale}x", "MB", found[0], found[1], found[1] / found[0], COMMAND))
    print(full_size())
    return rows


def sides(scale: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Labels of one square photo by the head, and by the ensemble; CLIP ViT-B/16's shapes."""
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
    photo = Image.effect_noise((side, side), 60).convert("RGB")
    return (lambda: by_head.predict(photo).mask), (lambda: segmenter.predict(photo).mask)


def _peak(scale: int, side: int) -> float:
    """Megabytes that labelling a photo adds to what this process holds, at their peak."""
    action = sides(scale)[side]
    action()  # loads what it needs
    peak = Peak()
    action()
    return peak.megabytes()


def full_size() -> str:
    """Memory of a step of `experiment=mrovseg` on CLIP ViT-L/14, all in float32: no less than a GPU takes in bfloat16.

    Processors without bfloat16 would take an hour for a step in it.
    """
    plain = conf.to_plain(conf.compose("train_masks", ["experiment=mrovseg"]))
    backbone = conf.to_plain(conf.load_choice("backbone", "clip_vitl14")) | {"weights": "random"}
    backbone.pop("feature_norm")
    crops = plain["masks"]["batch_size"]
    cost = step_cost(plain, Backbone(**backbone))
    return (
        f"experiment=mrovseg: trainable parameters {cost.trainable / 1e6:.1f} M, frozen {cost.frozen / 1e6:.0f} M; "
        f"by calculation {cost.gigabytes(crops):.1f} GiB with {crops} crops a step ({cost.fixed / 2**30:.2f} GiB "
        f"fixed, {cost.live / 2**30:.2f} GiB a crop); one crop took {cost.seconds:.1f} s here"
    )


def step_cost(plain: dict[str, Any], backbone: Backbone) -> Cost:
    """Cost of a step of one crop as `plain` configures it; the text encoder has no part in a step, and is small."""
    text = conf.to_plain(conf.load_choice("text", "clip_small"))
    model = SimZSS(backbone, build_text_encoder(text.pop("kind"), backbone.width, **text))
    config = HeadConfig.from_plain(plain["multires"])
    model.multires = build_head(config, backbone)
    names = [(f"class {number}",) for number in range(CLASSES)]
    loss, optim = MaskLossConfig(**plain["mask_loss"]), OptimConfig.from_plain(plain["optim"])
    module = MaskModule(model, names, loss, optim, WHOLE_336, "concept", 0)
    module.words = torch.nn.functional.normalize(torch.randn(CLASSES, backbone.width), dim=-1)
    batch: MaskBatch = module.rehearsal_batch(1, config.scale * config.window)

    return measure_cost(model, module.head, lambda: torch.stack(list(module.losses(batch).values())).sum())
