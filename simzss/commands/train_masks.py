"""`simzss train-masks`: a mask head on a trained model, from photos with masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from simzss.losses.settings import MaskLossSettings
from simzss.models.settings import BackboneWeights, MaskHeadSettings, TextPooling
from simzss.training.settings import MasksSettings, RunSettings

if TYPE_CHECKING:
    from simzss.models.simzss import SimZSS
    from simzss.training.data.masks import MaskDataset


class TrainMasksSettings(RunSettings):
    """Train a mask head on a model: its backbone and its text encoder stay as they are."""

    model: str
    """model folder, or hub repository owner/name"""
    backbone: BackboneWeights = BackboneWeights()
    """the frozen backbone of the model"""
    text_pooling: TextPooling | None = None
    """how a class name becomes a vector: sentence, tokens of the name, both; null: the model's own"""
    masks: MasksSettings
    """photos and masks"""
    mask_head: MaskHeadSettings = MaskHeadSettings()
    """shape of the head"""
    mask_loss: MaskLossSettings = MaskLossSettings()
    """losses"""
    output_dir: Path = Path("outputs/train_masks")
    """folder of the run: config.yaml, metrics.csv, train.txt, held_out.txt, checkpoints/, model/"""

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        for key in ("compile", "micro_batch"):
            if getattr(self.trainer, key):
                raise ValueError(f"trainer.{key}={getattr(self.trainer, key)} is for `simzss train` alone")
        return self


def run(settings: TrainMasksSettings) -> Path:
    """Train as configured and return the model folder.

    Raises:
        InputError: anything wrong with the settings, the model or the masks, before training starts; on all processes
            when it is wrong for one of them.
    """
    from simzss.distributed import raise_on_all_ranks
    from simzss.training.data.masks import MaskDataModule, open_masks, write_split
    from simzss.training.mask_module import MaskModule
    from simzss.training.trainer import start_trainer

    output, head = settings.output_dir, settings.mask_head
    started = start_trainer(settings)
    with started.hold() as start:
        if start.finished:
            return output / "model"
        with raise_on_all_ranks():
            dataset, held_out = open_masks(settings.masks, head.scale * head.window, settings.seed)
            model = _build_model(settings, dataset)
            model.backbone.use_precision(started.precision)
            module = MaskModule(
                model, dataset.class_groups, settings.mask_loss, settings.optim, settings.protocol, settings.seed
            )
            started.load_validation()
            if started.trainer.is_global_zero:
                write_split(output, dataset.benchmark.names, held_out)
        started.fit(module, MaskDataModule(dataset, settings.seed), start.checkpoint)
        model.info |= {"head_steps": started.trainer.global_step}
        return started.save(model)


def _build_model(settings: TrainMasksSettings, dataset: MaskDataset) -> SimZSS:
    """Load the model and give it a new head, whose weights depend on the seed alone."""
    import torch

    from simzss.data.settings import Background
    from simzss.errors import ConfigError
    from simzss.models.checkpoint import load_model
    from simzss.models.mask_head.head import build_mask_head
    from simzss.segmentation.classifier import checked_names

    checked_names(dataset.class_groups, Background())
    model = load_model(settings.model, settings.backbone.weights)
    if model.mask_head is not None:
        raise ConfigError(f"model={settings.model} has a mask head already: give the model that it was trained on")
    model.text_pooling = settings.text_pooling or model.text_pooling
    torch.manual_seed(settings.seed)
    trained = [name for group in dataset.class_groups for name in group]
    model.mask_head = build_mask_head(settings.mask_head, model.backbone, trained)
    return model
