"""A training run, from its configuration to a model folder."""

import json
import logging
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from simzss import config as conf
from simzss.cache.placement import PLACEMENTS
from simzss.cache.settings import CacheSettings
from simzss.concepts.bank import ConceptBank
from simzss.concepts.leakage import excluded_words
from simzss.data.batch import summarise_skipped
from simzss.data.cached import CachedData
from simzss.data.datamodule import CaptionData, StreamedData
from simzss.distributed import failing_together, gather_values, naming_lost_processes
from simzss.errors import InputError, nearest
from simzss.models.backbone import Backbone, with_proxy
from simzss.models.folder import save_model
from simzss.models.simzss import SimZSS
from simzss.models.text import KINDS, build_text_encoder
from simzss.precision import best_device, resolve_precision
from simzss.training.cluster import EndBySigterm, choose_strategy, meet, started_by
from simzss.training.logger import ProgressBar, ResumableCSVLogger
from simzss.training.module import LossConfig, OptimConfig, SimZSSModule
from simzss.training.validation import ZeroShotValidation

log = logging.getLogger(__name__)

DATA = ("stream", "cached")
_MAKING = ("num_workers", "views", "min_crop", "storage", "file_mb")
"""Keys of `data` that say how a run makes its own cache. The seed is none: runs with different ones share it."""
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
_LIMITS: dict[str, tuple[float, float]] = {  # least and most, both allowed
    "seed": (0, 2**32 - 1),  # what NumPy takes
    "data.batch_size": (1, math.inf),
    "data.num_workers": (0, math.inf),
    "data.captions_per_image": (1, math.inf),
    "data.shuffle": (0, math.inf),
    "data.norm_images": (1, math.inf),
    "trainer.epochs": (1, math.inf),
    "trainer.num_nodes": (1, math.inf),
    "trainer.timeout": (1, math.inf),
    "trainer.log_every_n_steps": (1, math.inf),
    "trainer.checkpoint_every_n_epochs": (1, math.inf),
    "validation.every_n_epochs": (1, math.inf),
    "text.layers": (1, math.inf),
    "text.width": (1, math.inf),
    "text.context_length": (3, math.inf),  # the start, a word, the end
    "optim.lr": (0, math.inf),
    "optim.eps": (0, math.inf),
    "optim.weight_decay": (0, math.inf),
    "optim.warmup": (0, 1),
}


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
    optim = OptimConfig(**{**plain["optim"], "betas": tuple(plain["optim"]["betas"])})
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
    _quiet_libraries()
    precision = resolve_precision(plain["trainer"]["precision"], _target_device(plain["trainer"]["accelerator"]))
    measured = plain["validation"]["benchmark"] is not None
    validation = [ZeroShotValidation(plain["validation"], plain["protocol"], precision)] if measured else []
    trainer = build_trainer(plain["trainer"], output, precision, validation)
    meet(trainer)
    with failing_together():
        resume, module, data = _prepare(plain, output, precision, trainer)
        for callback in validation:
            callback.load()
        if trainer.is_global_zero:  # known to the trainer before the processes have found each other
            conf.save(config, output / "config.yaml")
    if precision == "bf16-mixed":
        # What stays in float32 are products of the losses: a GPU may round their factors to 11 bits, 8 times as many
        # steps as bfloat16 has.
        torch.set_float32_matmul_precision("high")
    if plain["trainer"]["compile"]:
        module.model.text_encoder.compile_body()
    with naming_lost_processes():
        trainer.fit(module, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True)
    return _write_model(plain, output, trainer, module, data)


def _prepare(
    plain: Mapping[str, Any], output: Path, precision: str, trainer: pl.Trainer
) -> tuple[Path | None, SimZSSModule, CaptionData]:
    """The checkpoint to go on from, the module and the data; the trainer gets what depends on them."""
    resume = _find_checkpoint(plain["resume"], output)
    if resume is None and (output / "metrics.csv").exists():
        raise InputError(f"output_dir={output} holds a run already: give another one, or resume=last")
    for logger in trainer.loggers:
        if isinstance(logger, ResumableCSVLogger):
            logger.resumed_step = _step_of(resume)
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
    data, trainer = plain["data"], plain["trainer"]
    if data["kind"] not in DATA:
        raise InputError(f"data.kind={data['kind']} is unknown; {nearest(data['kind'], DATA)}")
    if data["kind"] == "cached":
        CacheSettings(**{name: data[name] for name in _MAKING})
        if data["placement"] not in PLACEMENTS:
            raise InputError(f"data.placement={data['placement']} is unknown; {nearest(data['placement'], PLACEMENTS)}")
    if plain["text"]["kind"] not in KINDS:
        raise InputError(f"text.kind={plain['text']['kind']} is unknown; {nearest(plain['text']['kind'], KINDS)}")
    resolve_precision(trainer["precision"], torch.device("cpu"))
    for key, (least, most) in _LIMITS.items():
        group, _, name = key.rpartition(".")
        value = (plain[group] if group else plain).get(name)
        # So that NaN and infinity are refused too. A text encoder has not every key.
        if value is not None and not (least <= value <= most and value < math.inf):
            wanted = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise InputError(f"{key}={value} must be {wanted}")
    if not 0 < data.get("min_crop", 1) <= 1:
        raise InputError(f"data.min_crop={data['min_crop']} must be above 0 and at most 1")
    betas = plain["optim"]["betas"]
    if len(betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas):
        raise InputError(f"optim.betas={betas} must be two numbers from 0 to less than 1")
    if trainer["micro_batch"] is not None and trainer["micro_batch"] < 1:
        raise InputError(f"trainer.micro_batch={trainer['micro_batch']} must be at least 1, or null")
    if trainer["max_steps"] < 1 and trainer["max_steps"] != -1:
        raise InputError(f"trainer.max_steps={trainer['max_steps']} must be at least 1, or -1 for all of the epochs")
    _check_devices(trainer["accelerator"], trainer["devices"])


def _check_devices(accelerator: str, devices: int | str) -> None:
    if accelerator not in ACCELERATORS:
        raise InputError(f"trainer.accelerator={accelerator} is unknown; {nearest(accelerator, ACCELERATORS)}")
    present = {"auto", "cpu", best_device().type} | ({"gpu"} if best_device().type in ("cuda", "mps") else set())
    if accelerator not in present:
        raise InputError(f"trainer.accelerator={accelerator} is not available here; there is {best_device().type}")
    if not re.fullmatch(r"auto|-1|[1-9]\d*|\d+(,\d+)+", str(devices).replace(" ", "")):
        raise InputError(f"trainer.devices={devices} must be auto, at least 1, -1 for all, or a list such as 0,1")


def build_trainer(
    options: Mapping[str, Any], output: Path, precision: str, callbacks: Sequence[pl.Callback] = ()
) -> pl.Trainer:
    """Lightning's trainer: any device, DDP when there are several, CSV and TensorBoard logs, checkpoints by epoch.

    Args:
        options: the group `trainer` of the configuration.
        output: gets the logs and the checkpoints.
        precision: resolved arithmetic.
        callbacks: more of them. They come first: the bar and the checkpoints show and hold what they log.

    Raises:
        InputError: what Lightning refuses, such as another number of processes than torchrun or Slurm started.
    """
    checkpoints = ModelCheckpoint(
        dirpath=output / "checkpoints",
        filename="epoch{epoch}",
        auto_insert_metric_name=False,
        every_n_epochs=options["checkpoint_every_n_epochs"],
        save_top_k=1,
        monitor=None,
        save_last="link",  # not a second copy of the weights and the optimiser
        save_on_train_epoch_end=True,
    )
    bar = [ProgressBar(refresh_rate=10)] if options["progress_bar"] else []
    try:
        environment = started_by()
        return pl.Trainer(
            accelerator=options["accelerator"],
            devices=options["devices"],
            num_nodes=options["num_nodes"],
            strategy=choose_strategy(options, environment),
            plugins=[] if environment is None else [environment],
            precision=precision,  # type: ignore[arg-type]
            max_epochs=options["epochs"],
            max_steps=options["max_steps"],
            default_root_dir=output,
            logger=[
                ResumableCSVLogger(output),
                TensorBoardLogger(output, name="", version="tensorboard"),
            ],
            callbacks=[*callbacks, *bar, EndBySigterm(), checkpoints],
            log_every_n_steps=options["log_every_n_steps"],
            enable_progress_bar=bool(options["progress_bar"]),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            gradient_clip_val=None,
        )
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        # Such as more devices than there are, or another number of processes than the cluster started.
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error


def _target_device(accelerator: str) -> torch.device:
    return torch.device("cpu") if accelerator == "cpu" else best_device()


def _find_checkpoint(resume: str | None, output: Path) -> Path | None:
    if resume is None:
        return None
    path = output / "checkpoints" / "last.ckpt" if resume == "last" else Path(resume)
    if resume == "last" and path.is_symlink() and not path.exists():
        # Ended between the removal of the checkpoint before and the link to the new one, which is whole by then.
        path = max(path.parent.glob("epoch*.ckpt"), key=lambda file: file.stat().st_mtime, default=path)
    if not path.is_file():
        raise InputError(f"resume={resume}: {path} does not exist")
    return path


def _step_of(checkpoint: Path | None) -> int | None:
    """Optimizer step at which a checkpoint was written."""
    if checkpoint is None:
        return None
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
    except Exception as error:
        # A foreign or broken file fails in as many ways as there are formats.
        reason = (str(error).splitlines() or ["it is empty or broken off"])[0]
        raise InputError(f"resume={checkpoint} is no checkpoint: {reason}") from error


def _quiet_libraries() -> None:
    """Hide what Lightning says of choices that are ours on purpose."""
    expected = (
        ".*module.s. in eval mode.*",  # the frozen backbone
        ".*does not have many workers.*",  # cached features need none
        ".*Checkpoint directory.*",  # resume
        ".*Experiment logs directory.*",  # resume
        ".*srun.*",
        ".*IterableDataset.*__len__.*",  # no two workers deliver the same batch
        ".*treespec.*",  # Lightning's own use of an old torch name
    )
    for text in expected:
        warnings.filterwarnings("ignore", text)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
