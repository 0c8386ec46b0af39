"""Base of the training modules: optimiser, seeds, checkpoints of the trainable part, a loss that must be finite."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from simzss.distributed import rank, total
from simzss.errors import ConfigError, InputError
from simzss.models.settings import TextPooling
from simzss.models.simzss import SimZSS
from simzss.training.optim import build_optimizer, warmup_cosine
from simzss.training.settings import OptimSettings


class BaseModule(pl.LightningModule):
    """Trains the parameters of a `SimZSS` model that require a gradient.

    Args:
        model: what learns.
        optim: optimiser and schedule.
        seed: reseeds every epoch, so that a resumed run draws what the uninterrupted one would.
    """

    def __init__(self, model: SimZSS, optim: OptimSettings, seed: int) -> None:
        super().__init__()
        self.model = model
        self.optim = optim
        self.seed = seed
        self.strict_loading = False  # checkpoints hold the trainable part; `on_load_checkpoint` checks the names
        self._finite = torch.tensor(True)  # whether the last loss is, on the device

    @property
    def text_pooling(self) -> TextPooling:
        """Return how class names are read out of what is trained."""
        raise NotImplementedError

    def note_loss(self, loss: Tensor) -> None:
        """Remember the loss of a step; the run ends where it is not finite."""
        self._finite = loss.detach().isfinite()

    def on_train_epoch_start(self) -> None:
        """Make the epoch's random draws (dropout) a function of seed, epoch and rank."""
        torch.manual_seed(((self.seed * 1_000_003 + self.current_epoch) * 65_537 + rank()) % 2**63)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the loss at the steps whose values the loggers fetch from the device in any case."""
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._require_finite()

    def on_train_epoch_end(self) -> None:
        """Check the last loss before a checkpoint is written: weights that are no numbers stay so."""
        self._require_finite()

    def _require_finite(self) -> None:
        """End the run, on all ranks together, when the last loss is not finite."""
        if total((~self._finite).float()) > 0:
            raise InputError(
                f"train/loss is not finite at step {self.trainer.global_step}: a lower optim.lr, or "
                "trainer.precision=32-true, may help"
            )

    def configure_optimizers(self) -> Any:
        """Build AdamW with warm-up and cosine over the steps that the trainer will make."""
        optimizer = build_optimizer(self.parameters(), self.optim)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(self.optim.warmup * steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def log_rate(self, batch_size: int) -> None:
        """Log the learning rate."""
        (schedule,) = [self.lr_schedulers()]
        self.log("lr", schedule.get_last_lr()[0], batch_size=batch_size)  # type: ignore[union-attr]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the trainable part only: a frozen backbone has no place in a checkpoint."""
        return {f"model.{name}": value for name, value in self.model.trainable_state().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model: Lightning itself does not check a partial state."""
        own, state = self.state_dict(), checkpoint["state_dict"]
        if own.keys() != state.keys():
            surplus, missing = sorted(state.keys() - own)[:3], sorted(own.keys() - state)[:3]
            raise ConfigError(f"resume: the checkpoint does not fit this model: surplus {surplus}, missing {missing}")
        for name, value in own.items():
            if value.shape != state[name].shape:
                shapes = f"{tuple(state[name].shape)} in place of {tuple(value.shape)}"
                raise ConfigError(f"resume: the checkpoint does not fit this model: {name} has {shapes}")
