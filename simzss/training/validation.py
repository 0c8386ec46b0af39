"""Zero-shot mIoU while training."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from simzss import config as conf
from simzss.data.benchmark import Benchmark, BenchmarkConfig
from simzss.errors import InputError
from simzss.evaluation.evaluate import evaluate
from simzss.segmentation.segmenter import Protocol, Segmenter
from simzss.training.module import SimZSSModule


class ZeroShotValidation(pl.Callback):
    """Segments a benchmark after every so many epochs and logs `val/miou/<name>`."""

    def __init__(self, benchmark: Benchmark, protocol: Protocol, precision: str, every_n_epochs: int) -> None:
        self.benchmark = benchmark
        self.protocol = protocol
        self.precision = precision
        self.every_n_epochs = every_n_epochs

    @classmethod
    def from_config(
        cls, options: Mapping[str, Any], protocol: Mapping[str, Any], precision: str
    ) -> "ZeroShotValidation | None":
        """What `conf/validation` asks for; None without a benchmark.

        Raises:
            InputError: unknown benchmark, or its root is missing.
        """
        if options["benchmark"] is None:
            return None
        if options["root"] is None:
            raise InputError(f"value missing: give validation.root=…, the folder of {options['benchmark']}")
        chosen = conf.to_plain(conf.load_choice("benchmark", options["benchmark"]))
        chosen |= {"root": options["root"], "limit": options["limit"]}
        return cls(Benchmark(BenchmarkConfig(**chosen)), Protocol(**protocol), precision, options["every_n_epochs"])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate on all ranks together."""
        assert isinstance(pl_module, SimZSSModule)
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        readout = "concept" if pl_module.loss.concept_weight > 0 else "sentence"
        segmenter = Segmenter(pl_module.model, self.protocol, readout, self.precision, pl_module.device)
        result = evaluate(segmenter, self.benchmark)
        pl_module.log(f"val/miou/{self.benchmark.config.name}", result["mIoU"], prog_bar=True, rank_zero_only=True)
        pl_module.model.train()
