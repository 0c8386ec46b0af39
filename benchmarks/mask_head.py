"""Rows `mask_head_…`: the mask head against a sliding-window ensemble at the same resolution.

The ensemble is the straightforward way to more pixels than the backbone was made for: overlapping windows of its size,
half a window apart, whose scores are averaged (`inference=slide`). Ours encodes windows that do not overlap and the
whole image, in one forward, and the head makes masks of them. Backbone, weights, precision and class vectors are the
same on both sides; weights are random, which changes no time. At 2x the ensemble has 9 windows where ours has 4 and the
whole image, at 3x 25 where ours has 9.

On an accelerator a forward has `BATCH` photos, and memory is the accelerator's.

The last line is the cost of a training step of `experiment=mrovseg`: measured on an accelerator; on a processor
estimated from a step of one crop.
"""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.peaks import Peak, apart
from benchmarks.rows import Row, throughput
from benchmarks.runs import matmul_precision
from simzss.commands.train_masks import TrainMasksSettings
from simzss.commands.verbs import settings_of
from simzss.device import allocator, best_device, resolve_precision
from simzss.models.backbone.base import Backbone
from simzss.models.build import build_backbone, build_model, build_text_encoder
from simzss.models.mask_head.head import build_mask_head
from simzss.models.settings import BackboneSettings, MaskHeadSettings, ScratchText
from simzss.models.simzss import SimZSS
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import Protocol
from simzss.settings.compose import load_choice
from simzss.training.mask_module import MaskModule
from simzss.training.step_cost import StepCost, measure_step

CLASSES = 171
WINDOW = 224
SCALES = (2, 3)
BATCH = 16
COMMAND = "make bench BENCH=mask_head"


def run() -> list[Row]:
    """Measure two rows for each resolution, and print the cost of the full-size step."""
    rows = []
    for scale in SCALES:
        ours, baseline = sides(scale)
        row = throughput("mask_head", f"mask_head_forward_{scale}x", "images/s", _photos(), ours, baseline, runs=3)
        rows.append(row)
    for scale in SCALES:
        ours, baseline = (apart(_peak, scale, side) for side in (0, 1))
        rows.append(Row(f"mask_head_memory_{scale}x", "MB", ours, baseline, baseline / ours, COMMAND))
    print(full_size())
    return rows


def _photos() -> int:
    return 1 if best_device().type == "cpu" else BATCH


def sides(scale: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return functions that label square photos by the head and by the ensemble, in CLIP ViT-B/16's shapes."""
    model = build_model(_untrained("clip_vitb16"), None, _text(), seed=0)
    side = scale * WINDOW
    slide = Protocol(inference="slide", short_side=side, crop_size=WINDOW, stride=WINDOW // 2, templates="photo")
    ensemble = Segmenter(model, slide, batch_size=32)
    classifier = ensemble.classifier([f"class {number}" for number in range(CLASSES)])
    with_head = SimZSS(model.backbone, model.text_encoder)
    with_head.mask_head = build_mask_head(MaskHeadSettings(window=WINDOW, scale=scale), model.backbone)
    segmenter = Segmenter(with_head, Protocol(templates="photo"), batch_size=32)
    photos = [Image.effect_noise((side, side), 60).convert("RGB") for _ in range(_photos())]

    def labels(which: Segmenter) -> list[Tensor]:
        return [prediction.mask for prediction in which.predict_batch(photos, classifier)]

    return (lambda: labels(segmenter)), (lambda: labels(ensemble))


def _untrained(backbone: str) -> BackboneSettings:
    return BackboneSettings.of(load_choice("backbone", backbone) | {"weights": "random"})


def _text() -> ScratchText:
    return ScratchText.of(load_choice("text", "clip_small"))


def _peak(scale: int, side: int) -> float:
    """Measure the megabytes that labelling a photo adds to what this process holds, at their peak."""
    action = sides(scale)[side]
    action()  # loads what it needs
    peak = Peak()
    action()
    return peak.megabytes()


def full_size() -> str:
    """Describe the cost of a step of `experiment=mrovseg` on CLIP ViT-L/14.

    Measured on an accelerator. On a processor the memory of one crop is estimated and multiplied, all in float32, which
    is no less than an accelerator takes in bfloat16: processors without it would take an hour for a step in it.
    """
    settings: TrainMasksSettings = settings_of("train-masks", ["experiment=mrovseg", "model=none", "masks.root=none"])
    wanted, device = settings.masks.batch_size, best_device()
    memory = allocator(device)
    crops, precision = (1, "32-true") if memory is None else (wanted, resolve_precision("auto", device))
    backbone = build_backbone(_untrained("clip_vitl14")).use_precision(precision)
    cost = step_cost(settings, backbone, crops, precision)
    sizes = f"trainable parameters {cost.trainable / 1e6:.1f} M, frozen {cost.frozen / 1e6:.0f} M"
    if memory is not None:
        peak = memory.max_memory_reserved(device) / 2**30
        return (
            f"experiment=mrovseg, {precision}: {sizes}; {cost.gigabytes():.2f} GiB with {crops} crops a step, at most "
            f"{peak:.2f} GiB held by the allocator; a step took {cost.seconds:.3f} s"
        )
    return (
        f"experiment=mrovseg: {sizes}; estimated {cost.gigabytes(wanted):.1f} GiB with {wanted} crops a step "
        f"({cost.fixed / 2**30:.2f} GiB fixed, {cost.live / 2**30:.2f} GiB a crop); one crop took {cost.seconds:.1f} s"
    )


def step_cost(settings: TrainMasksSettings, backbone: Backbone, crops: int, precision: str) -> StepCost:
    """Measure a step; the text encoder has no part in it, and is small."""
    model = SimZSS(backbone, build_text_encoder(_text(), backbone.width))
    head = settings.mask_head
    model.mask_head = build_mask_head(head, backbone)
    names = [(f"class {number}",) for number in range(CLASSES)]
    module = MaskModule(model, names, settings.mask_loss, settings.optim, Protocol(), 0).to(best_device())
    vectors = torch.randn(CLASSES, backbone.width)
    module.class_vectors = torch.nn.functional.normalize(vectors, dim=-1).to(module.device)
    batch = module.synthetic_batch(crops, head.scale * head.window)

    def loss() -> Tensor:
        with torch.autocast(module.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            return torch.stack(list(module.losses(batch).values())).sum()

    with matmul_precision(precision):
        return measure_step(model, loss)
