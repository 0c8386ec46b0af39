"""Whole steps in turn: ours from a cache, ours from photos, and the original release's."""

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.original import CaptionImages, OriginalStep, padded_batches
from benchmarks.runs import matmul_precision, step_times, synchronise
from simzss.commands.train import TrainSettings, build_bank
from simzss.commands.verbs import settings_of
from simzss.data.shards import Sample, expand_shards, read_shards
from simzss.device import device_of, resolve_precision
from simzss.losses.settings import LossSettings
from simzss.models.build import build_model
from simzss.models.simzss import SimZSS
from simzss.settings.compose import load_choice
from simzss.training.data.encoding import CaptionEncoder, EncodedCaption

AHEAD = 2
"""Batches of the original's loader beyond those that are timed: its workers are as busy at the end as ever."""
KINDS = ("cached", "uncached", "original")


@dataclass(frozen=True)
class Setting:
    """Settings that the three kinds of step have in common.

    Attributes:
        common: overrides of `simzss train` for any of them: experiment, backbone, device.
        shards: pattern of the shards.
        features: folder of the cache.
        output: for logs.
        workers: decoding processes.
        placement: of the cache's features.
    """

    common: tuple[str, ...]
    shards: str
    features: Path
    output: Path
    workers: int
    placement: str = "auto"

    def cached(self, batch: int, *more: str) -> TrainSettings:
        """Return the settings of a run from the cache."""
        source = ["data=cached", f"data.features={self.features}", f"data.placement={self.placement}"]
        return self._settings(source, batch, more)

    def uncached(self, batch: int, *more: str) -> TrainSettings:
        """Return the settings of a run from photos."""
        source = ["data=shards", f"data.shards={self.shards}", f"data.num_workers={self.workers}"]
        return self._settings(source, batch, more)

    def _settings(self, source: Sequence[str], batch: int, more: Sequence[str]) -> TrainSettings:
        settings = settings_of("train", [*self.common, *source, f"data.batch_size={batch}", *more])
        assert isinstance(settings, TrainSettings)
        return settings


class Original:
    """The original release's steps on the photos of a setting.

    Args:
        setting: what to train on.
        batch: captions of a step.
        steps: after the first one.
    """

    def __init__(self, setting: Setting, batch: int, steps: int) -> None:
        settings = setting.cached(batch)
        self.device = device_of(settings.trainer.accelerator)
        self.precision = resolve_precision(settings.trainer.precision, self.device)
        self.batch, self.steps, self.workers = batch, steps, setting.workers
        model = build_model(settings.backbone, settings.proxy, settings.text, settings.seed)
        bank = build_bank(settings.concepts)
        loss = LossSettings.of(load_choice("loss", "release"))
        self.step = OriginalStep(model, len(bank), settings.optim, loss, self.precision, self.device)
        encoder = CaptionEncoder(model.text_encoder, bank)
        self.length, self.pad_id = encoder.context_length, encoder.pad_id
        files, self.captions = draw_captions(setting.shards, encoder, batch * (steps + 1 + AHEAD))
        backbone = model.backbone
        mean, std = (tensor.flatten().tolist() for tensor in (backbone.mean, backbone.std))
        self.images = CaptionImages(files, backbone.image_size, mean, std)

    def seconds_per_step(self) -> float:
        """Return the seconds of each step after the first."""
        batches = padded_batches(self.images, self.captions, self.batch, self.length, self.pad_id, self.workers)
        with matmul_precision(self.precision):
            self.step.step(next(batches))
            synchronise(self.device)
            start = time.perf_counter()
            for _ in range(self.steps):
                self.step.step(next(batches))
            synchronise(self.device)
        seconds = (time.perf_counter() - start) / self.steps
        batches.close()  # type: ignore[attr-defined]
        return seconds


def draw_captions(shards: str, encoder: CaptionEncoder, count: int) -> tuple[list[bytes], list[EncodedCaption]]:
    """Draw captions of the shards' images in turn, one at random for each visit, with the file of each image."""
    rng = random.Random(0)
    samples: list[Sample] = []
    for sample in read_shards(expand_shards(shards)):
        if isinstance(sample, Sample):
            samples.append(sample)
        if len(samples) == count:
            break
    chosen = [samples[i % len(samples)] for i in range(count)]
    return [sample.image for sample in chosen], encoder.encode([rng.choice(sample.captions) for sample in chosen])


def compare_steps(
    setting: Setting, batch: int, runs: int, steps: dict[str, int], model: SimZSS | None = None
) -> dict[str, list[float]]:
    """Measure the samples a second of each kind in turn, at one batch size.

    Args:
        setting: what to train on.
        batch: captions of a step.
        runs: of each, in turn.
        steps: of each kind, after the first one of each run.
        model: ours, to save the time of building it.
    """
    original = Original(setting, batch, steps["original"])
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(runs):
        for kind, settings in (("cached", setting.cached(batch)), ("uncached", setting.uncached(batch))):
            watch = step_times(settings, setting.output, steps[kind], model)
            found[kind].append(batch / watch.seconds_per_step)
        found["original"].append(batch / original.seconds_per_step())
    return found


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
