"""Training a head with masks, from its configuration to a model folder."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

from simzss import config as conf
from simzss.data.benchmark import open_benchmark
from simzss.distributed import failing_together, naming_lost_processes
from simzss.errors import InputError
from simzss.losses.mask import MaskLossConfig
from simzss.models.checkpoint import load_model, save_model
from simzss.models.mask_head.head import HeadConfig, build_head
from simzss.segmentation.background import Background
from simzss.segmentation.classifier import checked_names
from simzss.segmentation.protocol import Protocol
from simzss.training.data.masks import MaskData, MasksConfig, TrainingMasks, divide, write_split
from simzss.training.mask_module import MaskModule
from simzss.training.optim import OptimConfig
from simzss.training.trainer import check_common, find_checkpoint, start_trainer

log = logging.getLogger(__name__)


@dataclass
class _Run:
    """What a run is made of."""

    resume: Path | None
    module: MaskModule
    data: MaskData
    settings: dict[str, Any]
    held_out: list[str]


def train_masks(config: DictConfig) -> Path:
    """Train a head as configured; returns the model folder.

    The output folder gets `config.yaml`, `train.txt`, `held_out.txt`, `checkpoints/`, `metrics.csv`, `tensorboard/` and
    `model/`.

    Raises:
        InputError: anything wrong with the configuration, the model or the masks.
    """
    conf.require_complete(config)
    plain: dict[str, Any] = conf.to_plain(config)
    check_mask_settings(plain)
    output = Path(plain["output_dir"])
    trainer, precision, validation = start_trainer(plain)
    with failing_together():
        run = _prepare(plain, output, precision, trainer)
        for callback in validation:
            callback.load()
        if trainer.is_global_zero:
            conf.save(config, output / "config.yaml")
            write_split(output, run.data.masks.benchmark.names, run.held_out)
    with naming_lost_processes():
        resume = str(run.resume) if run.resume else None
        trainer.fit(run.module, datamodule=run.data, ckpt_path=resume, weights_only=True)
    return _write_model(output, trainer, run)


def check_mask_settings(plain: Mapping[str, Any]) -> None:
    """Refuse values that no run could use, before anything is loaded.

    Raises:
        InputError: names the key.
    """
    HeadConfig.from_plain(plain["multires"])
    MasksConfig.from_plain(plain["masks"])
    MaskLossConfig(**plain["mask_loss"])
    Protocol(**plain["protocol"])
    check_common(plain)
    for key in ("compile", "micro_batch"):
        if plain["trainer"][key]:
            raise InputError(f"trainer.{key}={plain['trainer'][key]} is for text encoders, not for training with masks")


def _prepare(plain: Mapping[str, Any], output: Path, precision: str, trainer: pl.Trainer) -> _Run:
    resume = find_checkpoint(plain["resume"], output, trainer)
    masks_config = MasksConfig.from_plain(plain["masks"])
    masks, held_out = build_masks(masks_config, plain["seed"])
    checked_names(masks.class_groups, Background())
    model, settings = load_model(plain["model"], plain["backbone"]["weights"])
    if model.multires is not None:
        raise InputError(f"model={plain['model']} has a head already: give the model that it was trained on")
    pl.seed_everything(plain["seed"], workers=True, verbose=False)
    head = HeadConfig.from_plain(plain["multires"])
    trained = [name for group in masks.class_groups for name in group]
    model.multires = build_head(head, model.backbone, trained)
    model.backbone.use_precision(precision)
    data = MaskData(masks, head.scale * head.window, masks_config, plain["seed"])
    readout = str(plain["readout"] or settings.get("readout", "concept"))
    module = MaskModule(
        model,
        masks.class_groups,
        MaskLossConfig(**plain["mask_loss"]),
        OptimConfig.from_plain(plain["optim"]),
        Protocol(**plain["protocol"]),
        readout,
        plain["seed"],
    )
    names = masks.benchmark.names
    log.info("masks: %d photos of %s, %d held out, %d classes", len(names), masks_config.benchmark, len(held_out),
             len(masks.class_groups))  # fmt: skip
    return _Run(resume, module, data, settings | {"readout": readout}, held_out)


def build_masks(config: MasksConfig, seed: int) -> tuple[TrainingMasks, list[str]]:
    """Photos and masks to train on, and the names of those held out.

    Raises:
        InputError: no such set, or one that cannot be read.
    """
    own = {"root": config.root, "images": config.images, "masks": config.masks, "split": config.split}
    changes: dict[str, Any] = {key: value for key, value in own.items() if value is not None}
    if config.images is not None and config.split is None:
        changes["split"] = None  # the benchmark's names photos of its own folders
    benchmark = open_benchmark("masks", config.benchmark, changes)
    trained, held_out = divide(benchmark.names, config.held_out, seed)
    benchmark.names = trained[: config.photos]
    return TrainingMasks(benchmark, config.hidden), held_out


def _write_model(output: Path, trainer: pl.Trainer, run: _Run) -> Path:
    """Write the model folder, by one process; the others wait for it."""
    folder = output / "model"
    if trainer.is_global_zero:
        model = run.module.model
        settings = run.settings | {"head_steps": trainer.global_step}
        save_model(model, folder, _backbone_options(model.backbone), settings)
    trainer.strategy.barrier()
    return folder


def _backbone_options(backbone: Any) -> dict[str, Any]:
    keys = ("name", "timm_name", "features", "project", "image_size")
    return {key: getattr(backbone, key) for key in keys} | {"weights": backbone.weights}
