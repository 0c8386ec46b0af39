"""Zero-shot mIoU during training."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from torch import nn

from simzss.data.benchmark import open_benchmark
from simzss.errors import ConfigError
from simzss.evaluation.segmentation import evaluate
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import Protocol
from simzss.training.base import BaseModule
from simzss.training.settings import ValidationSettings


class ZeroShotValidation(pl.Callback):
    """Segments a benchmark after every so many epochs and logs `val/miou/<name>`.

    Made with the trainer, before the processes have met; `load` reads the benchmark, which may be wrong for one only.

    Args:
        settings: with a benchmark.
        protocol: how images go through the model.
        precision: resolved.
    """

    def __init__(self, settings: ValidationSettings, protocol: Protocol, precision: str) -> None:
        self.settings = settings
        self.protocol = protocol
        self.precision = precision

    def load(self) -> None:
        """Read the benchmark; to be called before the fit.

        Raises:
            InputError: no such benchmark, or its root is missing.
        """
        settings = self.settings
        assert settings.benchmark is not None
        if settings.root is None:
            raise ConfigError(f"value missing: give validation.root=…, the folder of {settings.benchmark}")
        changes = {"root": settings.root, "limit": settings.limit}
        self.benchmark = open_benchmark("validation", settings.benchmark, changes)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Segment one image: what is wrong with the settings must not wait for the end of an epoch."""
        assert isinstance(pl_module, BaseModule)
        with _evaluating(pl_module.model):
            self.segmenter = Segmenter(
                pl_module.model,
                self.protocol,
                text_pooling=pl_module.text_pooling,
                precision=self.precision,
                device=pl_module.device,
                values=self.benchmark.settings.values_of(self.protocol.name),
            )
            background = self.benchmark.background(engineered=False, with_masks=pl_module.model.mask_head is not None)
            classifier = self.segmenter.classifier(self.benchmark.class_groups, background)
            _ = self.segmenter.predict(self.benchmark[0].image, classifier).mask

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate on all ranks together."""
        if (trainer.current_epoch + 1) % self.settings.every_n_epochs:
            return
        with _evaluating(self.segmenter.model):
            miou = evaluate(self.segmenter, self.benchmark).miou
        if miou is None:  # no pixel counts
            return
        name = f"val/miou/{self.benchmark.settings.name}"
        pl_module.log(name, miou, prog_bar=True, logger=False, rank_zero_only=True)
        # Lightning's own way to the loggers is after the checkpoint of this epoch: a run that is killed in between
        # would go on without this row.
        for logger in trainer.loggers:
            logger.log_metrics({name: miou, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
            logger.save()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode; afterwards every module is as it was: validation must not change the training."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
