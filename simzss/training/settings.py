"""Settings of training: optimiser, trainer, loggers, data, validation."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from simzss.features.settings import Crop, FeatureSettings, Placement, StorageSettings, Workers
from simzss.segmentation.settings import Protocol
from simzss.settings.base import Settings
from simzss.settings.types import Positive, Precision, Seed, Share, Strings


class OptimSettings(Settings):
    """AdamW with linear warm-up and a cosine to zero, one file of `conf/optim`."""

    lr: Annotated[float, Field(ge=0)] = 3.0e-5
    """peak learning rate"""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    """of AdamW"""
    eps: Annotated[float, Field(ge=0)] = 1.0e-6
    """of AdamW"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    """not on biases, norms and the logit scale"""
    warmup: Share = 0.1
    """share of all steps"""


class TrainerSettings(Settings):
    """Lightning's trainer, one file of `conf/trainer`; many machines: docs/cluster.md."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    """auto: the machine's accelerator when it has one"""
    devices: int | str = "auto"
    """auto, a number of devices, -1 for all, or a list such as 0,1"""
    num_nodes: Positive = 1
    """machines; each runs `devices` processes"""
    timeout: Positive = 1800
    """seconds that a process waits for the others"""
    precision: Precision = "auto"
    """auto: bf16-mixed where it is native"""
    epochs: Positive = 6
    """passes over the captions"""
    max_steps: int = -1
    """optimiser steps at most; -1: as many as the epochs have"""
    micro_batch: Positive | None = None
    """images and captions through the towers at a time; losses always see the whole batch; null: all at once"""
    compile: bool = False
    """compile the text encoder: a minute once, then steps may be faster"""
    log_every_n_steps: Positive = 1
    """steps between logged values"""
    progress_bar: bool = True
    """show a progress bar"""
    checkpoint_every_n_epochs: Positive = 1
    """epochs between checkpoints"""

    @field_validator("devices")
    @classmethod
    def _countable(cls, devices: int | str) -> int | str:
        text = str(devices).replace(" ", "")
        if not re.fullmatch(r"auto|-1|[1-9]\d*|\d+(,\d+)+", text):
            raise ValueError("must be auto, at least 1, -1 for all, or a list such as 0,1")
        return int(text) if re.fullmatch(r"-?\d+", text) else text

    @field_validator("max_steps")
    @classmethod
    def _steps(cls, steps: int) -> int:
        if steps < 1 and steps != -1:
            raise ValueError("must be at least 1, or -1 for all of the epochs")
        return steps


class CsvLogger(Settings):
    """Rows of metrics.csv in the output folder."""


class TensorBoardSettings(Settings):
    """Event files in the output folder (extra `tensorboard`)."""

    folder: str = "tensorboard"
    """below the output folder"""


class WandbSettings(Settings):
    """Weights & Biases (extra `wandb`)."""

    project: str = "simzss"
    """project that the run belongs to"""
    name: str | None = None
    """of the run; null: the output folder's"""
    offline: bool = False
    """keep the log on this machine"""


class LoggerSettings(Settings):
    """Loggers of metrics: any of `conf/logger`, several at once as logger=[csv,tensorboard]."""

    csv: CsvLogger | None = None
    """metrics.csv"""
    tensorboard: TensorBoardSettings | None = None
    """TensorBoard"""
    wandb: WandbSettings | None = None
    """Weights & Biases"""


class StreamSettings(Settings):
    """Images stream from shards through random crops; the backbone encodes them at every step."""

    kind: Literal["stream"] = "stream"
    """pixels from shards"""
    shards: str | list[str]
    """glob or brace pattern, or a list: 'shards/*.tar', 'shards/{coco,flickr}/*.tar'"""
    batch_size: Positive = 256
    """captions of a step, over all processes"""
    captions_per_image: Positive = 1
    """of a batch: the backbone encodes the image once for all of them"""
    num_workers: Workers = 2
    """decoding processes per training process"""
    shuffle: Workers = 2000
    """samples in the shuffle buffer of each of them"""
    min_crop: Crop = 0.9
    """smallest share of the image that a random crop keeps"""
    norm_images: Positive = 2000
    """images from which centring or whitening takes its statistics"""


class CachedSettings(StorageSettings):
    """Features kept by `simzss cache`: no image is decoded, no backbone runs.

    Given shards, the cache is made first, or completed.
    """

    kind: Literal["cached"] = "cached"
    """cached features"""
    features: str | None = None
    """folder of the cache; null: output_dir/features"""
    batch_size: Positive = 256
    """captions of a step, over all processes"""
    placement: Placement = "auto"
    """where the features are while training"""
    verify: bool = True
    """compare every file with its checksum"""
    norm_images: Positive = 2000
    """images from which centring or whitening takes its statistics"""
    shards: str | list[str] | None = None
    """glob or brace pattern, or a list of them; null: the cache must be complete"""
    num_workers: Workers = 2
    """decoding processes per training process"""

    @property
    def making(self) -> FeatureSettings:
        """Return how the run makes its own cache. Its seed is no part of that: runs with different ones share it."""
        return self.computed(num_workers=self.num_workers)


DataSettings = Annotated[StreamSettings | CachedSettings, Field(discriminator="kind")]


class MasksSettings(Settings):
    """Photos and index masks to train on, in the layout of a benchmark, one file of `conf/masks`."""

    benchmark: str
    """a segmentation set of `conf/benchmark`, whose layout and classes they have"""
    root: str
    """its folder"""
    images: str | None = None
    """photos below the root, such as images/train2017; null: the benchmark's"""
    masks: str | None = None
    """masks below the root, such as annotations/train2017; null: the benchmark's"""
    split: str | None = None
    """text file of names, below the root or anywhere; null: the benchmark's"""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """share of the photos left out, by the seed; output_dir/held_out.txt names them"""
    limit: Positive | None = None
    """first photos of the rest, null: all"""
    exclude_classes: Strings = []
    """classes whose pixels do not count: to measure what was not learned"""
    batch_size: Positive = 16
    """crops of a step, over all processes"""
    num_workers: Workers = 4
    """decoding processes per training process"""
    scales: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0)
    """large-scale jitter (Ghiasi et al. 2021): range of a photo's short side beside that of a crop"""
    flip: bool = True
    """mirror half of the crops"""

    @field_validator("scales")
    @classmethod
    def _ordered(cls, scales: tuple[float, float]) -> tuple[float, float]:
        if scales[0] > scales[1]:
            raise ValueError("must be two numbers, the lower one first")
        return scales


class ValidationSettings(Settings):
    """Zero-shot mIoU during training, logged as val/miou/NAME, one file of `conf/validation`."""

    benchmark: str | None = None
    """name in `conf/benchmark`; null: none"""
    root: str | None = None
    """its folder; must be given with a benchmark"""
    limit: Positive | None = 100
    """first images, null: all"""
    every_n_epochs: Positive = 1
    """epochs between measurements"""


class RunSettings(Settings):
    """A run of either kind of training."""

    optim: OptimSettings = OptimSettings()
    """optimiser"""
    trainer: TrainerSettings = TrainerSettings()
    """machine and schedule"""
    logger: LoggerSettings = LoggerSettings(csv=CsvLogger())
    """where metrics go"""
    protocol: Protocol = Protocol()
    """of validation"""
    validation: ValidationSettings = ValidationSettings()
    """zero-shot segmentation during training"""
    seed: Seed = 0
    """of weights, batches and crops"""
    output_dir: Path
    """folder of the run: config.yaml, metrics.csv, checkpoints/, model/"""
    resume: str | None = None
    """`last` goes on in output_dir, whatever state it is in: from its last checkpoint, or from the start; or a file"""
