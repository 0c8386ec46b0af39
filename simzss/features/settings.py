"""Settings of cached features."""

from typing import Annotated, Any, Literal

from pydantic import Field

from simzss.settings.base import Settings
from simzss.settings.types import Positive, Seed

Crop = Annotated[float, Field(gt=0, le=1)]
Views = Annotated[int, Field(ge=1, le=4)]
Storage = Literal["bfloat16", "int8", "float32"]
Megabytes = Annotated[float, Field(gt=0)]
Workers = Annotated[int, Field(ge=0)]
Placement = Literal["auto", "device", "host", "mapped"]


class StorageSettings(Settings):
    """Views of images and the files that hold their features: what every verb that makes a cache has."""

    views: Views = 1
    """views of each image, 1 to 4: the whole, then random crops"""
    min_crop: Crop = 0.9
    """smallest share of the image that a crop keeps"""
    storage: Storage = "bfloat16"
    """number format; int8 has a scale for each patch and half the size"""
    file_mb: Megabytes = 256.0
    """megabytes (10^6 bytes) of features in a file at most"""

    def computed(self, **how: Any) -> "FeatureSettings":
        """Return these settings with how features are computed: `batch_size`, `num_workers`, `seed`."""
        return FeatureSettings(**{name: getattr(self, name) for name in StorageSettings.model_fields}, **how)


class FeatureSettings(StorageSettings):
    """Computing and storing features."""

    batch_size: Positive | None = None
    """images through the backbone at a time; null: what suits the machine"""
    num_workers: Workers = 2
    """decoding processes per process"""
    seed: Seed = 0
    """of the crops"""

    def block_size(self, device_type: str) -> int:
        """Return the number of images through the backbone at a time.

        Few on a CPU: activations above 32 MB are mapped and unmapped by its allocator at every layer, which takes half
        the time.
        """
        return self.batch_size or (16 if device_type == "cpu" else 64)
