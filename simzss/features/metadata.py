"""All that cached features depend on: kept beside them, and compared before they are used or added to."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from simzss.features.views import TRANSFORM_VERSION, Views
from simzss.models.backbone.base import Backbone
from simzss.tasks import differences

FORMAT_VERSION = 1
"""Of the files and the index."""


class FeatureMetadata(BaseModel, frozen=True):
    """Origin of the features of a folder: all that they depend on besides the images.

    Attributes:
        backbone: its names, the fingerprint of its weights, and how it makes features of images.
        transform: the views, see `Views.metadata`.
        storage: `bfloat16`, `int8` (patches with a scale each, class tokens bfloat16) or `float32`.
        precision: of the arithmetic, `bf16-mixed` or `32-true`.
        grid: (h, w) patches.
        width: D.
        version: of the format.
    """

    backbone: dict[str, Any]
    transform: dict[str, Any]
    storage: str
    precision: str
    grid: tuple[int, int]
    width: int
    version: int = FORMAT_VERSION

    @classmethod
    def of(
        cls, backbone: Backbone, views: Views, storage: str, precision: str, grid: tuple[int, int]
    ) -> "FeatureMetadata":
        """Describe features that are to be made."""
        return cls(
            backbone=describe_backbone(backbone),
            transform=views.metadata(),
            storage=storage,
            precision=precision,
            grid=grid,
            width=backbone.width,
        )

    @property
    def views(self) -> int:
        """Return V, the number of pictures of an image."""
        return int(self.transform["views"])

    @property
    def patches(self) -> int:
        """Return N, the number of patches of a picture."""
        return self.grid[0] * self.grid[1]

    @property
    def fingerprint(self) -> str:
        """Return a hash of all of it, which every file of features carries."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for JSON, equal to what comes back from a file."""
        return self.model_dump(mode="json")

    def backbone_differences(self, backbone: Backbone) -> list[str]:
        """Return where these features are not what this backbone and this program make of an image."""
        made = {"backbone": self.backbone, "transform": {"version": self.transform.get("version")}}
        return differences(made, {"backbone": describe_backbone(backbone), "transform": {"version": TRANSFORM_VERSION}})


def describe_backbone(backbone: Backbone) -> dict[str, Any]:
    """Return what the features of an image depend on in a backbone; `weights` is the fingerprint of their values."""
    description = {
        "name": backbone.name,
        "timm_name": backbone.settings.timm_name,
        "weights": backbone.fingerprint,
        "features": backbone.features,
        "project": bool(backbone.project),
        "image_size": backbone.image_size,
        "mean": backbone.mean.flatten().tolist(),
        "std": backbone.std.flatten().tolist(),
    }
    if backbone.proxy is not None and backbone.proxy_backbone is not None:
        # The keys of beta and gamma are those of the files.
        numbers = {"shift": backbone.proxy.beta, "gain": backbone.proxy.gamma}
        description["proxy"] = describe_backbone(backbone.proxy_backbone) | numbers
    return description
