"""What training modules share: optimiser, seeds, checkpoints of the trainable part, a loss that must be a number."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from simzss.distributed import rank, total
from simzss.errors import InputError
from simzss.models.simzss import SimZSS
from simzss.training.optim import OptimConfig, build_optimizer, warmup_cosine


class Learner(pl.LightningModule):
    """Trains a part of a `SimZSS` model: all of it that requires a gradient.

    Args:
        model: what learns.
        optim: optimiser and schedule.
        seed: reseeds every epoch, so that a resumed run draws what the uninterrupted one would.
    """

    def __init__(self, model: SimZSS, optim: OptimConfig, seed: int) -> None:
        super().__init__()
        self.model = model
        self.optim = optim
        self.seed = seed
        self.strict_loading = False  # checkpoints hold the trainable part; `on_load_checkpoint` checks the names
        self._finite = torch.tensor(True)  # whether the last loss was a number, on the device

    @property
    def readout(self) -> str:
        """How class names are read out of what is trained."""
        raise NotImplementedError

    def note_loss(self, loss: Tensor) -> None:
        """To be called with the loss of each step: the run ends where it is no number."""
        self._finite = loss.detach().isfinite()

    def on_train_epoch_start(self) -> None:
        """Make the epoch's random draws (dropout) a function of seed, epoch and rank."""
        torch.manual_seed(((self.seed * 1_000_003 + self.current_epoch) * 65_537 + rank()) % 2**63)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the loss at the steps whose values the loggers fetch from the device in any case."""
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._require_finite()

    def on_train_epoch_end(self) -> None:
        """Look at the last loss before a checkpoint is written: weights that are no numbers stay so."""
        self._require_finite()

    def _require_finite(self) -> None:
        """End the run, on all ranks together, when the last loss was no number."""
        if total((~self._finite).float()) > 0:
            raise InputError(f"train/loss is not finite at step {self.trainer.global_step}: "
                             "a lower optim.lr, or trainer.precision=32-true, may help")  # fmt: skip

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine over the steps that the trainer will make."""
        optim = self.optim
        optimizer = build_optimizer(self.parameters(), optim.lr, optim.betas, optim.eps, optim.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(optim.warmup * steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def log_rate(self, batch_size: int) -> None:
        """Log the learning rate."""
        (schedule,) = [self.lr_schedulers()]
        self.log("lr", schedule.get_last_lr()[0], batch_size=batch_size)  # type: ignore[union-attr]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The trainable part only: a frozen backbone has no place in a checkpoint."""
        return {f"model.{name}": value for name, value in self.model.trainable_state().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model: Lightning itself does not check a partial state."""
        expected, found = set(self.state_dict()), set(checkpoint["state_dict"])
        if expected != found:
            surplus, missing = sorted(found - expected)[:3], sorted(expected - found)[:3]
            raise InputError(f"checkpoint does not fit this model: surplus {surplus}, missing {missing}")
        own, state = self.state_dict(), checkpoint["state_dict"]
        wrong = next((name for name in own if own[name].shape != state[name].shape), None)
        if wrong is not None:
            raise InputError(f"checkpoint does not fit this model: {wrong} has {tuple(state[wrong].shape)} in place of "
                             f"{tuple(own[wrong].shape)}")  # fmt: skip
