"""Zero-shot mIoU while training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from torch import nn

from simzss.data.benchmark import open_benchmark
from simzss.errors import InputError
from simzss.evaluation.segmentation import evaluate
from simzss.segmentation.protocol import Protocol
from simzss.segmentation.segmenter import Segmenter
from simzss.training.learner import Learner


class ZeroShotValidation(pl.Callback):
    """Segments a benchmark after every so many epochs and logs `val/miou/<name>`.

    Made with the trainer, before the processes have met; `load` reads the benchmark, which may be wrong for one only.

    Args:
        options: the group `validation` of the configuration, with a benchmark.
        protocol: the group `protocol`.
        precision: resolved arithmetic.
    """

    def __init__(self, options: Mapping[str, Any], protocol: Mapping[str, Any], precision: str) -> None:
        self.options = options
        self.settings = protocol
        self.precision = precision
        self.every_n_epochs = int(options["every_n_epochs"])

    def load(self) -> None:
        """Read the benchmark; to be called before the fit.

        Raises:
            InputError: unknown benchmark, or its root is missing.
        """
        options = self.options
        if options["root"] is None:
            raise InputError(f"value missing: give validation.root=…, the folder of {options['benchmark']}")
        changes = {"root": options["root"], "limit": options["limit"]}
        self.benchmark = open_benchmark("validation", options["benchmark"], changes)
        self.protocol = Protocol(**self.settings).resolved(self.benchmark.config.short_side)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Segment one image: what is wrong with the settings must not wait for the end of an epoch."""
        assert isinstance(pl_module, Learner)
        with _evaluating(pl_module.model):
            self.segmenter = Segmenter(
                pl_module.model, self.protocol, pl_module.readout, self.precision, pl_module.device
            )
            self.segmenter.set_classes(self.benchmark.class_groups, self.segmenter.background_of(self.benchmark))
            _ = self.segmenter.predict(self.benchmark[0].image).mask

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate on all ranks together."""
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        with _evaluating(self.segmenter.model):
            result = evaluate(self.segmenter, self.benchmark).result
        pl_module.log(f"val/miou/{self.benchmark.config.name}", result["mIoU"], prog_bar=True, rank_zero_only=True)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every part as it was: training must not depend on what watches it."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
