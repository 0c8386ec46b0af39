"""Start, joining and end of the processes of a run, on one machine or on the nodes of a cluster.

In the order of a run: `started_by` finds torchrun or Slurm, `choose_strategy` what binds the processes,
`init_process_group` joins them, `EndBySigterm` ends them. See docs/cluster.md.
"""

import os
import signal
import threading
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies import DDPStrategy

from simzss.distributed import first_line
from simzss.errors import ConfigError
from simzss.training.settings import TrainerSettings


def started_by() -> ClusterEnvironment | None:
    """Return Lightning's environment of torchrun (also within Slurm) or Slurm; None: started by the user alone.

    Slurm comes without Lightning's own way of requeueing. That saves a checkpoint wherever SIGUSR1 meets each process,
    in the middle of a step and of a collective, and what goes on in the middle of an epoch is not the run that was
    interrupted. conf/cluster/train.sbatch requeues.

    Raises:
        ConfigError: one of several tasks of a Slurm job, not started by srun: it would wait for the others.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if not SLURMEnvironment.detect():
        return None
    tasks = int(os.environ["SLURM_NTASKS"])
    if tasks > 1 and "SLURM_STEP_ID" not in os.environ:
        raise ConfigError(f"trainer: this Slurm job has {tasks} tasks, which srun starts together: srun simzss train …")
    return SLURMEnvironment(auto_requeue=False)


def choose_strategy(settings: TrainerSettings, environment: ClusterEnvironment | None) -> DDPStrategy | str:
    """Return DDP if the run is, or may be, distributed, else `auto`.

    Args:
        settings: number of nodes and devices, timeout of a collective.
        environment: of `started_by`.
    """
    alone = settings.num_nodes == 1 and settings.devices in (1, "auto") and torch.cuda.device_count() < 2
    if alone and (environment is None or environment.world_size() == 1):
        return "auto"
    return DDPStrategy(timeout=timedelta(seconds=settings.timeout))


def init_process_group(trainer: pl.Trainer) -> None:
    """Join the processes that torchrun or Slurm started now, not after each has loaded everything.

    What is wrong on one machine is then known to all. Processes that Lightning itself starts on one machine are not
    there yet; Lightning ends them together.

    Raises:
        ConfigError: another number of processes than configured, or they do not find each other in time.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if not isinstance(environment, TorchElasticEnvironment | SLURMEnvironment):
        return
    try:
        environment.validate_settings(trainer.num_devices, trainer.num_nodes)
        trainer.strategy.setup_environment()
    except ValueError as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    except RuntimeError as error:  # of which the errors of torch.distributed are
        place = f"{environment.main_address}:{environment.main_port}"
        raise ConfigError(
            f"trainer: {trainer.world_size} processes did not meet at {place}: {first_line(error)}"
        ) from error


class EndBySigterm(pl.Callback):
    """Ends the process at once on SIGTERM, as Slurm sends it at the time limit; the last checkpoint is intact.

    Lightning would let the processes agree on it from within the handler of the signal, where each may be in another
    collective: they hang. Alone it ends well, with an exit code that says so of the training too.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the handler that Lightning has just installed, which restores the one before at the end."""
        started = list(getattr(trainer.strategy.launcher, "procs", []))  # by Lightning on this machine

        def end(signum: int, _: Any) -> None:
            for process in started:
                process.kill()
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

        if threading.current_thread() is threading.main_thread():
            # No Python where it is not needed: that waits for the end of a collective.
            signal.signal(signal.SIGTERM, end if started else signal.SIG_DFL)
