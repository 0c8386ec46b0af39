"""Settings of cached features."""

from typing import Annotated, Literal

from pydantic import Field

from simzss.settings.base import Settings
from simzss.settings.types import Positive, Seed

Crop = Annotated[float, Field(gt=0, le=1)]
Views = Annotated[int, Field(ge=1, le=4)]
Storage = Literal["bfloat16", "int8", "float32"]
Megabytes = Annotated[float, Field(gt=0)]
Workers = Annotated[int, Field(ge=0)]
Placement = Literal["auto", "device", "host", "mapped"]


class FeatureSettings(Settings):
    """Computing and storing features."""

    views: Views = 1
    """views of each image, 1 to 4: the whole, then random crops"""
    min_crop: Crop = 0.9
    """smallest share of the image that a crop keeps"""
    storage: Storage = "bfloat16"
    """number format; int8 has a scale for each patch and half the size"""
    file_mb: Megabytes = 256.0
    """megabytes (10^6 bytes) of features in a file at most"""
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
