"""Time of each part of our step, beside the lower bound that its operations and bytes have on this machine."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pytorch_lightning as pl
import torch

from benchmarks import floors
from benchmarks.floors import Work
from benchmarks.runs import make_run, matmul_precision, synchronise, with_steps
from simzss.commands.train import TrainSettings
from simzss.features.quantise import bytes_per_image
from simzss.models.features import ImageFeatures, TextFeatures
from simzss.models.simzss import SimZSS
from simzss.training.data.batch import Batch
from simzss.training.data.cached import CachedDataModule
from simzss.training.data.datamodule import CaptionDataModule
from simzss.training.data.images import CachedFeatures
from simzss.training.data.streamed import StreamDataModule
from simzss.training.module import SimZSSModule

Value = TypeVar("Value")
NAMES = ("data", "vision", "text", "loss", "optimiser")


@dataclass(frozen=True)
class Peaks:
    """Measured peaks of a machine: products in the precision of the towers and in float32, and memory bandwidth.

    Attributes:
        towers: FLOP/s, of products in bfloat16 where the towers run in it, else in float32.
        full: FLOP/s of products of float32 tensors, as a run of this precision computes them.
        bandwidth: bytes read and written a second.
    """

    towers: float
    full: float
    bandwidth: float


@dataclass(frozen=True)
class Part:
    """One part of one kind of step.

    Attributes:
        step: `cached` or `uncached`.
        name: of the part.
        seconds: measured, median.
        flops: counted.
        bytes: counted.
        floor: seconds that these need at the peaks.
        full: whether its products are those of float32.
    """

    step: str
    name: str
    seconds: float
    flops: float
    bytes: float
    floor: float
    full: bool

    @property
    def ratio(self) -> float | None:
        """Return the measured time over the floor; None without a floor."""
        return self.seconds / self.floor if self.floor else None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"ratio": self.ratio}


def measure_peaks(device: torch.device, precision: str, side: int | None = None, megabytes: int | None = None) -> Peaks:
    """Time large products, and large tensors copied, changed in place and read; the best of several.

    Args:
        device: whose.
        precision: `bf16-mixed` or `32-true`.
        side: of the square matrices; None for what suits the device.
        megabytes: of each such tensor.
    """
    small = device.type == "cpu"
    side = side or (2048 if small else 8192)
    size = (megabytes or (256 if small else 2048)) * 1_000_000

    def rate(amount: float, action: Callable[[], Any]) -> float:
        action()
        return amount / min(timed(device, action)[1] for _ in range(8))

    def products(dtype: torch.dtype) -> float:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        return rate(2 * side**3, lambda: left @ right)

    with matmul_precision(precision):
        towers = products(torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
        full = products(torch.float32)
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    # A CPU that copies also fetches what it overwrites, which is not counted; one that changes in place does not.
    ways = (
        rate(2 * size, lambda: target.copy_(source)),
        rate(2 * size, lambda: target.mul_(0.5)),
        rate(2 * size, lambda: torch.dot(source, target)),
    )
    return Peaks(towers, full, max(ways))


def timed(device: torch.device, action: Callable[[], Value]) -> tuple[Value, float]:
    """Return the result of an action, and the seconds until the device has done it."""
    synchronise(device)
    start = time.perf_counter()
    value = action()
    synchronise(device)
    return value, time.perf_counter() - start


@contextmanager
def given(module: SimZSSModule, image: ImageFeatures, text: TextFeatures) -> Iterator[None]:
    """Hand the step what the towers made: then it is the losses alone. Nothing is logged."""
    with (
        patch.object(module, "encode_image", lambda _: image),
        patch.object(module, "encode_text", lambda _: text),
        patch.object(module, "_log", lambda *_: None),  # Lightning logs within its own loop only
    ):
        yield


class PartTimes(pl.Callback):
    """Measures the parts when a run has made its last step: after each of them the device is waited for.

    Args:
        repeats: steps that count; one more comes before them.
        pixels: of a photo.
    """

    def __init__(self, repeats: int, pixels: int) -> None:
        self.repeats = repeats
        self.pixels = pixels
        self.seconds: dict[str, list[float]] = {name: [] for name in NAMES}
        self.works: list[dict[str, Work]] = []

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make a few more steps by hand."""
        assert isinstance(pl_module, SimZSSModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        batches = _endless(data)
        for number in range(self.repeats + 1):
            batch, seconds = measure_step(pl_module, trainer, batches)
            if number:
                self.works.append(count_step(pl_module, data, batch, self.pixels))
                for name, value in seconds.items():
                    self.seconds[name].append(value)
        batches.close()  # type: ignore[attr-defined]

    def parts(self, step: str, peaks: Peaks) -> list[Part]:
        """Return what was measured, beside its floors."""
        found = []
        for name in NAMES:
            flops = statistics.mean(work[name].flops for work in self.works)
            moved = statistics.mean(work[name].bytes for work in self.works)
            full = name in ("loss", "optimiser")
            floor = max(flops / (peaks.full if full else peaks.towers), moved / peaks.bandwidth)
            found.append(Part(step, name, statistics.median(self.seconds[name]), flops, moved, floor, full))
        return found


def _endless(data: CaptionDataModule) -> Iterator[Batch]:
    for epoch in count():
        yield from data.batches(epoch)


def measure_step(module: SimZSSModule, trainer: pl.Trainer, batches: Iterator[Batch]) -> tuple[Batch, dict[str, float]]:
    """Measure one step in parts, forward and backward of each together; return the batch, and seconds by part."""
    device, optimizer = module.device, trainer.optimizers[0]
    batch, data = timed(device, lambda: next(batches).to(device))
    with trainer.precision_plugin.train_step_context():
        image, vision = timed(device, lambda: module.encode_image(batch))
        text, text_forward = timed(device, lambda: module.encode_text(batch))
    leaves = TextFeatures(text.pooled.detach().requires_grad_(), text.tokens.detach().requires_grad_())
    with given(module, image, leaves), trainer.precision_plugin.train_step_context():
        _, loss = timed(device, lambda: module.training_step(batch, 0).backward())
    pairs = [
        (made, leaf.grad)
        for made, leaf in ((text.pooled, leaves.pooled), (text.tokens, leaves.tokens))
        if leaf.grad is not None
    ]

    def text_backward() -> None:
        torch.autograd.backward([made for made, _ in pairs], [gradient for _, gradient in pairs])

    _, backward = timed(device, text_backward)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    _, optimiser = timed(device, update)
    return batch, dict(zip(NAMES, (data, vision, text_forward + backward, loss, optimiser), strict=True))


def count_step(module: SimZSSModule, data: CaptionDataModule, batch: Batch, pixels: int) -> dict[str, Work]:
    """Count operations and bytes of the same step, without padding; photos have so many pixels."""
    model, images = module.model, len(batch.images)
    text = floors.text_of(model.text_encoder)
    lengths = caption_lengths(batch)
    kept = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    patches, item = (model.backbone.image_size // model.backbone.stride) ** 2, floors.FULL
    work = {name: Work(0, 0) for name in NAMES}
    if isinstance(data, CachedDataModule):
        facts = data.store.metadata
        one = bytes_per_image(facts.storage, 1, facts.patches, facts.width)
        patches, item = facts.patches, one // (facts.patches * facts.width)
        # Where the batch is gathered: by the host before the step, or by the device within it.
        work["data" if isinstance(batch.images, CachedFeatures) else "vision"] += floors.gather(images, one)
        if not data.store.normalised:
            work["vision"] += floors.gather(images, one)  # read as kept, written as unit vectors
    elif isinstance(data, StreamDataModule):
        side = model.backbone.image_size
        work["data"] = floors.decode(images, _bytes_of_a_sample(data), pixels, side)
        shape = floors.vision_of(model.backbone)
        if shape is not None:
            work["vision"] = floors.vision_forward(shape, images)
    work["text"] = floors.text_forward(text, lengths) + floors.text_backward(text, lengths)
    mentions, width = len(batch.mention_concept), text.out
    work["loss"] = floors.contrastive(images, len(batch), width)
    work["loss"] += floors.pooling(mentions, images, patches, width, item)
    work["loss"] += floors.concepts(mentions, len(batch.token_index), len(batch.mention_concept.unique()), width)
    work["optimiser"] = floors.adamw(kept)
    return work


def _bytes_of_a_sample(data: StreamDataModule) -> float:
    return sum(Path(url).stat().st_size for url in data.urls) / data.samples


def caption_lengths(batch: Batch) -> list[tuple[int, int]]:
    """Return (captions, tokens of each) without padding."""
    lengths: Counter[int] = Counter()
    for block in batch.text:
        lengths.update(block.attention_mask.sum(dim=1).tolist())
    return [(captions, length) for length, captions in sorted(lengths.items())]


def measure_parts(
    step: str,
    settings: TrainSettings,
    output: Path,
    peaks: Peaks,
    repeats: int,
    pixels: int,
    model: SimZSS | None = None,
) -> list[Part]:
    """Measure the parts of one kind of step.

    Args:
        step: its name.
        settings: of the run.
        output: for its logs.
        peaks: of the machine.
        repeats: steps.
        pixels: of a photo.
        model: of these settings.
    """
    times = PartTimes(repeats, pixels)
    make_run(with_steps(settings, 1), output, [times], model).fit()
    return times.parts(step, peaks)
