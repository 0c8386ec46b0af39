"""Lightning's trainer as every kind of training uses it."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from simzss.device import best_device, device_of, enable_tf32, resolve_precision
from simzss.distributed import naming_lost_ranks
from simzss.errors import ConfigError
from simzss.training.callbacks import Progress, SaveSettings
from simzss.training.cluster import EndBySigterm, choose_strategy, init_process_group, started_by
from simzss.training.loggers import build_loggers
from simzss.training.settings import RunSettings, TrainerSettings
from simzss.training.validation import ZeroShotValidation


@dataclass
class Run:
    """A trainer that has joined the other processes.

    Attributes:
        trainer: Lightning's.
        precision: resolved: `bf16-mixed` or `32-true`.
        settings: of the run.
        validation: callback that measures during training; None: no measurement.
    """

    trainer: pl.Trainer
    precision: str
    settings: RunSettings
    validation: ZeroShotValidation | None

    def load_validation(self) -> None:
        """Read the benchmark that is measured on, where there is one.

        Raises:
            InputError: it cannot be read.
        """
        if self.validation is not None:
            self.validation.load()

    def fit(self, module: pl.LightningModule, data: pl.LightningDataModule, resume: Path | None) -> None:
        """Train; `config.yaml` appears with the first step.

        Args:
            module: what learns.
            data: its batches.
            resume: checkpoint to continue from.

        Raises:
            InputError: the data or a validation that cannot be used, a loss that is no number, a lost process.
        """
        with naming_lost_ranks():
            checkpoint = None if resume is None else str(resume)
            self.trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def start_trainer(settings: RunSettings) -> Run:
    """Build the trainer of a run and join the other processes.

    Raises:
        ConfigError: see `build_loggers`, `build_trainer` and `init_process_group`.
    """
    _quiet_libraries()
    output, validation = settings.output_dir, settings.validation
    loggers = build_loggers(settings.logger, output)
    precision = resolve_precision(settings.trainer.precision, device_of(settings.trainer.accelerator))
    enable_tf32(precision)
    measuring = None if validation.benchmark is None else ZeroShotValidation(validation, settings.protocol, precision)
    callbacks: list[pl.Callback] = [SaveSettings(settings, output / "config.yaml")]
    built = build_trainer(
        settings.trainer, loggers, output, precision, callbacks if measuring is None else [measuring, *callbacks]
    )
    init_process_group(built)
    return Run(built, precision, settings, measuring)


def build_trainer(
    settings: TrainerSettings,
    loggers: Sequence[Logger],
    output: Path,
    precision: str,
    callbacks: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Build Lightning's trainer: any device, DDP when there are several, checkpoints by epoch.

    Args:
        settings: machine and schedule.
        loggers: where metrics go.
        output: gets the checkpoints.
        precision: resolved.
        callbacks: further ones. They come first: progress and checkpoints show and hold what they log.

    Raises:
        ConfigError: what Lightning refuses, such as another number of processes than torchrun or Slurm started.
    """
    _require_accelerator(settings.accelerator)
    checkpoints = ModelCheckpoint(
        dirpath=output / "checkpoints",
        filename="epoch{epoch}",
        auto_insert_metric_name=False,
        every_n_epochs=settings.checkpoint_every_n_epochs,
        save_top_k=1,
        monitor=None,
        save_last="link",  # not a second copy of the weights and the optimiser
        save_on_train_epoch_end=True,
    )
    bar = [Progress()] if settings.progress_bar else []
    try:
        environment = started_by()
        return pl.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=choose_strategy(settings, environment),
            plugins=[] if environment is None else [environment],
            precision=precision,  # type: ignore[arg-type]
            max_epochs=settings.epochs,
            max_steps=settings.max_steps,
            default_root_dir=output,
            logger=loggers or False,
            callbacks=[*callbacks, *bar, EndBySigterm(), checkpoints],
            log_every_n_steps=settings.log_every_n_steps,
            enable_progress_bar=False,  # ours is a callback
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            gradient_clip_val=None,
        )
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        # Such as more devices than there are, or another number of processes than the cluster started.
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error


def _require_accelerator(accelerator: str) -> None:
    """Refuse an accelerator that this machine does not have."""
    present = best_device().type
    aliases = {"auto", "cpu", present} | ({"gpu"} if present in ("cuda", "mps") else set())
    if accelerator not in aliases:
        raise ConfigError(f"trainer.accelerator={accelerator} is not available here; there is {present}")


def _quiet_libraries() -> None:
    """Silence Lightning's warnings of choices that are intended."""
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
