"""`simzss train`: a text encoder for a frozen backbone, from captions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from simzss.concepts.settings import ConceptSettings
from simzss.losses.settings import LossSettings
from simzss.models.settings import BackboneSettings, ProxySettings, TextSettings
from simzss.training.settings import DataSettings, RunSettings

if TYPE_CHECKING:
    from simzss.concepts.bank import ConceptBank
    from simzss.models.simzss import SimZSS
    from simzss.training.data.datamodule import CaptionDataModule
    from simzss.training.module import SimZSSModule
    from simzss.training.trainer import Run

log = logging.getLogger(__name__)


class TrainSettings(RunSettings):
    """Train a text encoder against a frozen backbone."""

    backbone: BackboneSettings
    """frozen vision backbone"""
    proxy: ProxySettings = ProxySettings()
    """model whose similarities guide the last block's attention (ProxyCLIP)"""
    text: TextSettings
    """text encoder"""
    concepts: ConceptSettings
    """concept bank"""
    loss: LossSettings = LossSettings()
    """losses"""
    data: DataSettings
    """images and captions"""
    output_dir: Path = Path("outputs/train")
    """folder of the run: config.yaml, metrics.csv, checkpoints/, model/"""


def run(settings: TrainSettings) -> Path:
    """Train as configured and return the model folder.

    Raises:
        InputError: settings or data that cannot be used; on all processes that torchrun or Slurm started, when they are
            wrong for one of them.
    """
    from simzss.distributed import raise_on_all_ranks
    from simzss.training.trainer import start_trainer

    started = start_trainer(settings)
    with started.hold() as start:
        if start.finished:
            return settings.output_dir / "model"
        with raise_on_all_ranks():
            module, data = build_training(settings, started.precision)
            started.load_validation()
        if settings.trainer.compile:
            module.model.text_encoder.compile_body()
        started.fit(module, data, start.checkpoint)
        return _write_model(started, module, data)


def build_training(
    settings: TrainSettings, precision: str, model: SimZSS | None = None
) -> tuple[SimZSSModule, CaptionDataModule]:
    """Build the module that learns and its data.

    Args:
        settings: of the run.
        precision: resolved.
        model: of these settings; None: build it.
    """
    from simzss.models.build import build_model
    from simzss.training.module import SimZSSModule

    if model is None:
        model = build_model(settings.backbone, settings.proxy, settings.text, settings.seed)
    model.backbone.use_precision(precision)
    bank = build_bank(settings.concepts)
    data = build_data(settings, model, bank, precision)
    micro_batch = settings.trainer.micro_batch
    return SimZSSModule(model, len(bank), settings.loss, settings.optim, settings.seed, micro_batch), data


def build_bank(settings: ConceptSettings) -> ConceptBank:
    """Read a concept bank without the classes of the excluded benchmarks.

    Raises:
        InputError: no such list or benchmark.
    """
    from simzss.concepts.bank import ConceptBank
    from simzss.concepts.leakage import excluded_words
    from simzss.settings.compose import find_file

    path = find_file(settings.bank, "concepts.bank")
    bank = ConceptBank.from_file(path, excluded_words(settings.exclude), settings.surface_forms)
    log.info("concept bank %s: %d concepts", path.name, len(bank))
    return bank


def build_data(settings: TrainSettings, model: SimZSS, bank: ConceptBank, precision: str) -> CaptionDataModule:
    """Build the data module for images that stream, or for cached features.

    Raises:
        InputError: no such shards.
    """
    from simzss.training.data.cached import CachedDataModule
    from simzss.training.data.streamed import StreamDataModule

    data, seed, micro_batch = settings.data, settings.seed, settings.trainer.micro_batch
    if data.kind == "stream":
        return StreamDataModule(model, bank, data, seed=seed, micro_batch=micro_batch)
    folder = Path(data.features) if data.features is not None else settings.output_dir / "features"
    return CachedDataModule(model, bank, data, folder, precision=precision, seed=seed, micro_batch=micro_batch)


def _write_model(run: Run, module: SimZSSModule, data: CaptionDataModule) -> Path:
    """Write what was skipped and the model folder, by one process; the others wait for it."""
    from dataclasses import asdict

    from simzss.atomic import write_json
    from simzss.data.shards import summarise_skipped
    from simzss.distributed import raise_on_all_ranks

    skipped = data.all_skipped()
    with raise_on_all_ranks():
        if skipped and run.trainer.is_global_zero:
            log.warning("%s", summarise_skipped(skipped))
            write_json(run.settings.output_dir / "skipped.json", [asdict(record) for record in skipped])
    module.model.text_pooling = module.text_pooling
    module.model.info["steps"] = run.trainer.global_step
    return run.save(module.model)
