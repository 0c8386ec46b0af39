"""`simzss cache`: features of a frozen backbone for all images of the shards, once for many runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from simzss.features.settings import FeatureSettings, StorageSettings, Workers
from simzss.models.settings import BackboneSettings, ProxySettings
from simzss.settings.base import Settings
from simzss.settings.types import Positive, Precision, Seed

if TYPE_CHECKING:
    from simzss.features.build import CacheSummary


class ShardsSettings(Settings):
    """Shards to read."""

    shards: str | list[str]
    """glob or brace pattern, or a list: 'shards/*.tar', 'shards/{coco,flickr}/*.tar'"""
    num_workers: Workers = 2
    """decoding processes per process"""


class CacheSettings(StorageSettings):
    """Cache the features of all images of the shards; the same command goes on where it was interrupted."""

    backbone: BackboneSettings
    """frozen vision backbone"""
    proxy: ProxySettings = ProxySettings()
    """model whose similarities replace the attention of the backbone's last block"""
    data: ShardsSettings
    """images"""
    output: Path
    """folder; takes the features of one backbone, transform and storage"""
    batch_size: Positive | None = None
    """images through the backbone at a time; null: what suits the machine"""
    precision: Precision = "auto"
    """auto: bf16-mixed where it is native"""
    accelerator: Literal["auto", "cpu"] = "auto"
    """auto: the machine's accelerator when it has one"""
    seed: Seed = 0
    """of the crops"""

    @property
    def features(self) -> FeatureSettings:
        """Return how features are computed and stored."""
        return self.computed(batch_size=self.batch_size, num_workers=self.data.num_workers, seed=self.seed)


def run(settings: CacheSettings) -> CacheSummary:
    """Make the cache, in this process or in those that torchrun or srun started.

    Raises:
        InputError: anything wrong with the shards, the backbone or the folder.
    """
    from simzss.data.shards import expand_shards
    from simzss.device import device_of, resolve_precision
    from simzss.distributed import process_group, raise_on_all_ranks
    from simzss.features.build import build_cache
    from simzss.models.build import build_backbone
    from simzss.program import interruptible

    with process_group(), interruptible("the same command goes on"):
        device = device_of(settings.accelerator)
        with raise_on_all_ranks():
            urls = expand_shards(settings.data.shards)
            backbone = build_backbone(settings.backbone, settings.proxy, settings.seed)
            precision = resolve_precision(settings.precision, device)
        return build_cache(backbone, urls, settings.output, settings.features, device, precision)
