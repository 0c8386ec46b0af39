"""A training run, from its configuration to a model folder."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

from simzss import config as conf
from simzss.concepts.bank import ConceptBank
from simzss.concepts.leakage import excluded_words
from simzss.distributed import failing_together, gather_values, naming_lost_processes
from simzss.errors import InputError, nearest
from simzss.features.placement import PLACEMENTS
from simzss.features.settings import CacheSettings
from simzss.models.backbone.base import Backbone, with_proxy
from simzss.models.checkpoint import save_model
from simzss.models.simzss import SimZSS
from simzss.models.text import KINDS, build_text_encoder
from simzss.training.data.batch import summarise_skipped
from simzss.training.data.cached import CachedData
from simzss.training.data.datamodule import CaptionData, StreamedData
from simzss.training.module import LossConfig, SimZSSModule
from simzss.training.optim import OptimConfig
from simzss.training.trainer import check_common, find_checkpoint, start_trainer

log = logging.getLogger(__name__)

DATA = ("stream", "cached")
_MAKING = ("num_workers", "views", "min_crop", "storage", "file_mb")
"""Keys of `data` that say how a run makes its own cache. The seed is none: runs with different ones share it."""


def build_model(backbone: Mapping[str, Any], text: Mapping[str, Any], seed: int) -> SimZSS:
    """The model before training; equal arguments give equal weights."""
    pl.seed_everything(seed, workers=True, verbose=False)
    spec = dict(backbone)
    feature_norm = spec.pop("feature_norm")
    frozen = Backbone(**spec)
    options = dict(text)
    return SimZSS(frozen, build_text_encoder(options.pop("kind"), frozen.width, **options), feature_norm)


def build_bank(concepts: Mapping[str, Any]) -> ConceptBank:
    """The concept bank that `conf/concepts` describes, without the classes of the excluded benchmarks."""
    path = conf.find_file(str(concepts["bank"]))
    bank = ConceptBank.from_file(path, excluded_words(concepts["exclude"]), bool(concepts["surface_forms"]))
    log.info("concept bank %s: %d concepts", path.name, len(bank))
    return bank


def build_data(plain: Mapping[str, Any], model: SimZSS, bank: ConceptBank, precision: str) -> CaptionData:
    """The data module that `conf/data` describes."""
    options = {**plain["data"], "seed": plain["seed"], "micro_batch": plain["trainer"]["micro_batch"]}
    if options.pop("kind") == "stream":
        return StreamedData(model, bank, **options)
    making = {name: options.pop(name) for name in _MAKING}
    options["features"] = options["features"] or Path(plain["output_dir"]) / "features"
    return CachedData(model, bank, **options, settings=CacheSettings(**making), precision=precision)


def build_module(
    plain: Mapping[str, Any], model: SimZSS, bank: ConceptBank, kind: type[SimZSSModule] = SimZSSModule
) -> SimZSSModule:
    """The module that trains `model` as configured, of the class `kind`."""
    optim = OptimConfig.from_plain(plain["optim"])
    loss, micro_batch = LossConfig(**plain["loss"]), plain["trainer"]["micro_batch"]
    return kind(model, len(bank), loss, optim, plain["seed"], micro_batch)


def train(config: DictConfig) -> Path:
    """Train as configured; returns the model folder.

    The output folder gets `config.yaml`, `checkpoints/`, `metrics.csv`, `tensorboard/` and `model/`.

    Raises:
        InputError: anything wrong with the configuration or the data, before training starts; on all processes that
            torchrun or Slurm started, when it is wrong for one of them.
    """
    conf.require_complete(config)
    plain: dict[str, Any] = conf.to_plain(config)
    plain["backbone"] = with_proxy(plain["backbone"], plain["proxy"])
    check_settings(plain)
    output = Path(plain["output_dir"])
    trainer, precision, validation = start_trainer(plain)
    with failing_together():
        resume, module, data = _prepare(plain, output, precision, trainer)
        for callback in validation:
            callback.load()
        if trainer.is_global_zero:  # known to the trainer before the processes have found each other
            conf.save(config, output / "config.yaml")
    if plain["trainer"]["compile"]:
        module.model.text_encoder.compile_body()
    with naming_lost_processes():
        trainer.fit(module, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True)
    return _write_model(plain, output, trainer, module, data)


def _prepare(
    plain: Mapping[str, Any], output: Path, precision: str, trainer: pl.Trainer
) -> tuple[Path | None, SimZSSModule, CaptionData]:
    """The checkpoint to go on from, the module and the data; the trainer gets what depends on them."""
    resume = find_checkpoint(plain["resume"], output, trainer)
    model = build_model(plain["backbone"], plain["text"], plain["seed"])
    model.backbone.use_precision(precision)
    bank = build_bank(plain["concepts"])
    data = build_data(plain, model, bank, precision)
    module = build_module(plain, model, bank)
    return resume, module, data


def _write_model(
    plain: Mapping[str, Any], output: Path, trainer: pl.Trainer, module: SimZSSModule, data: CaptionData
) -> Path:
    """Write the model folder and what was skipped, by one process; the others wait for it."""
    folder = output / "model"
    skipped = dict.fromkeys(record for share in gather_values(tuple(data.skipped)) for record in share)
    if trainer.is_global_zero:
        settings = {
            "readout": module.readout,
            "untrained": {key: plain[key] for key in ("backbone", "text", "seed")},
            "steps": trainer.global_step,
        }
        save_model(module.model, folder, plain["backbone"], settings)
        if skipped:
            log.warning("%s", summarise_skipped(skipped))
            records = [asdict(record) for record in skipped]
            (output / "skipped.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    trainer.strategy.barrier()
    return folder


def check_settings(plain: Mapping[str, Any]) -> None:
    """Refuse values that no run could use, before anything is loaded.

    Raises:
        InputError: names the key.
    """
    LossConfig(**plain["loss"])
    data = plain["data"]
    if data["kind"] not in DATA:
        raise InputError(f"data.kind={data['kind']} is unknown; {nearest(data['kind'], DATA)}")
    if data["kind"] == "cached":
        CacheSettings(**{name: data[name] for name in _MAKING})
        if data["placement"] not in PLACEMENTS:
            raise InputError(f"data.placement={data['placement']} is unknown; {nearest(data['placement'], PLACEMENTS)}")
    if plain["text"]["kind"] not in KINDS:
        raise InputError(f"text.kind={plain['text']['kind']} is unknown; {nearest(plain['text']['kind'], KINDS)}")
    if not 0 < data.get("min_crop", 1) <= 1:
        raise InputError(f"data.min_crop={data['min_crop']} must be above 0 and at most 1")
    check_common(plain)
