"""Lightning's trainer as every kind of training uses it."""

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from simzss.device import best_device, device_of, enable_tf32, resolve_precision
from simzss.distributed import naming_lost_ranks, raise_on_all_ranks
from simzss.errors import ConfigError
from simzss.models.checkpoint import save_model
from simzss.models.simzss import SimZSS
from simzss.program import interruptible
from simzss.tasks import hold_folder
from simzss.training.callbacks import CHECKPOINTS, Checkpoints, Progress, SaveSettings, keep_only
from simzss.training.checkpoint_io import WholeCheckpointIO
from simzss.training.cluster import EndBySigterm, choose_strategy, init_process_group, started_by
from simzss.training.loggers import build_loggers
from simzss.training.resume import Start, find_start, require_same_start
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

    @contextmanager
    def hold(self) -> Iterator[Start]:
        """Hold the folder of the run as the only one that writes there, and find where it begins.

        Raises:
            InputError: on all processes: another run holds the folder, it cannot be written, or see `find_start`.
            Interrupted: an interrupt during the block.
        """
        output = self.settings.output_dir
        with interruptible("the same command with resume=last goes on"), ExitStack() as stack:
            with raise_on_all_ranks():
                if self.trainer.is_global_zero:
                    stack.enter_context(hold_folder(output, "output_dir"))
                start = find_start(self.settings.resume, output, self.trainer)
            require_same_start(start, output)
            if self.settings.resume == "last" and start.checkpoint is not None and self.trainer.is_global_zero:
                keep_only(start.checkpoint)  # the run may have been killed before it did so
            yield start

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
        with naming_lost_ranks(), _raising_interrupts():
            checkpoint = None if resume is None else str(resume)
            self.trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)

    def save(self, model: SimZSS) -> Path:
        """Write the model folder, the last of a run's files, by one process; the others wait for it.

        Raises:
            InputError: on the other processes, it cannot be written.
            OSError: on the one that writes.
        """
        folder = self.settings.output_dir / "model"
        with raise_on_all_ranks():
            if self.trainer.is_global_zero:
                save_model(model, folder)
        return folder


@contextmanager
def _raising_interrupts() -> Iterator[None]:
    """Let an interrupt go on as one: Lightning ignores all further ones and ends the process without a word."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


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
    # The file that repeats the run is that of an undisturbed one.
    recipe = settings.replace(resume=None) if settings.resume == "last" else settings
    callbacks: list[pl.Callback] = [SaveSettings(recipe, output / "config.yaml")]
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
    checkpoints = Checkpoints(output / CHECKPOINTS, settings.checkpoint_every_n_epochs)
    bar = [Progress()] if settings.progress_bar else []
    try:
        environment = started_by()
        return pl.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=choose_strategy(settings, environment),
            plugins=[WholeCheckpointIO(), *([] if environment is None else [environment])],
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
        ".*callbacks used to create the checkpoint.*",  # version 0.1 had Lightning's own callback
        ".*srun.*",
        ".*IterableDataset.*__len__.*",  # no two workers deliver the same batch
        ".*treespec.*",  # Lightning's own use of an old torch name
        ".*smaller than the logging interval.*",  # which goes over the ends of epochs
    )
    for text in expected:
        warnings.filterwarnings("ignore", text)
    for chatty in ("utilities.rank_zero", "accelerators.cuda"):
        logging.getLogger(f"pytorch_lightning.{chatty}").setLevel(logging.WARNING)
