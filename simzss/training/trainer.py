"""The trainer, its settings and the folder of a run: what every kind of training has."""

import logging
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from simzss.device import allow_rounded_products, best_device, resolve_precision
from simzss.errors import InputError, nearest
from simzss.training.cluster import EndBySigterm, choose_strategy, meet, started_by
from simzss.training.logger import ProgressBar, ResumableCSVLogger
from simzss.training.validation import ZeroShotValidation

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


def check_common(plain: Mapping[str, Any]) -> None:
    """What `check_settings` refuses in any kind of training: seed, optimiser and trainer, and limits of what is there.

    Raises:
        InputError: names the key.
    """
    trainer = plain["trainer"]
    resolve_precision(trainer["precision"], torch.device("cpu"))
    for key, (least, most) in _LIMITS.items():
        group, _, name = key.rpartition(".")
        value = plain.get(group, {}).get(name) if group else plain[name]
        # So that NaN and infinity are refused too. Not every text encoder and every kind of training has each key.
        if value is not None and not (least <= value <= most and value < math.inf):
            wanted = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise InputError(f"{key}={value} must be {wanted}")
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


def start_trainer(plain: Mapping[str, Any]) -> tuple[pl.Trainer, str, list[ZeroShotValidation]]:
    """The trainer of a run, which has met those of the other processes.

    Args:
        plain: composition of either kind of training.

    Returns:
        The trainer, the resolved arithmetic, and what measures while it trains, to be loaded.

    Raises:
        InputError: see `build_trainer` and `meet`.
    """
    _quiet_libraries()
    precision = resolve_precision(plain["trainer"]["precision"], _target_device(plain["trainer"]["accelerator"]))
    allow_rounded_products(precision)
    measured = plain["validation"]["benchmark"] is not None
    validation = [ZeroShotValidation(plain["validation"], plain["protocol"], precision)] if measured else []
    trainer = build_trainer(plain["trainer"], Path(plain["output_dir"]), precision, validation)
    meet(trainer)
    return trainer, precision, validation


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


def find_checkpoint(resume: str | None, output: Path, trainer: pl.Trainer) -> Path | None:
    """The checkpoint to go on from, None to begin; the trainer's loggers know of it.

    Raises:
        InputError: it is none, or the folder holds a run that is to be neither continued nor overwritten.
    """
    path = _checkpoint_of(resume, output)
    if path is None and (output / "metrics.csv").exists():
        raise InputError(f"output_dir={output} holds a run already: give another one, or resume=last")
    for logger in trainer.loggers:
        if isinstance(logger, ResumableCSVLogger):
            logger.resumed_step = _step_of(path)
    return path


def _checkpoint_of(resume: str | None, output: Path) -> Path | None:
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
        ".*smaller than the logging interval.*",  # which goes over the ends of epochs
    )
    for text in expected:
        warnings.filterwarnings("ignore", text)
    for chatty in ("utilities.rank_zero", "accelerators.cuda"):
        logging.getLogger(f"pytorch_lightning.{chatty}").setLevel(logging.WARNING)
