"""All that cached features depend on: kept beside them, and compared before they are used or added to."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from simzss.features.views import TRANSFORM_VERSION, Views
from simzss.models.backbone.base import Backbone

FORMAT_VERSION = 1
"""Of the files and the index."""


@dataclass(frozen=True)
class CacheFacts:
    """What made the features of a folder, as plain JSON values.

    Attributes:
        backbone: its names, the fingerprint of its weights, and how it makes features of images.
        transform: the views, see `Views.facts`.
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

    @property
    def views(self) -> int:
        """V, pictures of an image."""
        return int(self.transform["views"])

    @property
    def patches(self) -> int:
        """N, patches of a picture."""
        return self.grid[0] * self.grid[1]

    @property
    def digest(self) -> str:
        """Hash of all of it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON, equal to what comes back from a file."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "CacheFacts":
        """Inverse of `to_json`; what is missing raises KeyError, other shapes TypeError or ValueError."""
        height, width = record["grid"]
        return cls(
            dict(record["backbone"]),
            dict(record["transform"]),
            str(record["storage"]),
            str(record["precision"]),
            (int(height), int(width)),
            int(record["width"]),
            int(record["version"]),
        )


def facts_of(backbone: Backbone, views: Views, storage: str, precision: str, grid: tuple[int, int]) -> CacheFacts:
    """The facts of features that are to be made."""
    return CacheFacts(backbone_facts(backbone), views.facts(), storage, precision, grid, backbone.width)


def backbone_facts(backbone: Backbone) -> dict[str, Any]:
    """What features of an image depend on in a backbone; `weights` is the fingerprint of the file's values."""
    facts = {
        "name": backbone.name,
        "timm_name": backbone.timm_name,
        "weights": backbone.fingerprint,
        "features": backbone.features,
        "project": bool(backbone.project),
        "image_size": backbone.image_size,
        "mean": backbone.mean.flatten().tolist(),
        "std": backbone.std.flatten().tolist(),
    }
    if backbone.proxy is not None and backbone.guide is not None:
        numbers = {key: backbone.proxy[key] for key in ("shift", "gain")}
        facts["proxy"] = backbone_facts(backbone.guide) | numbers
    return facts


def backbone_differences(facts: CacheFacts, backbone: Backbone) -> list[str]:
    """Where features of `facts` are not what this backbone and this program make of an image."""
    made = {"backbone": facts.backbone, "transform": {"version": facts.transform.get("version")}}
    return differences(made, {"backbone": backbone_facts(backbone), "transform": {"version": TRANSFORM_VERSION}})


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`key was X and is Y` for each value, dotted, in which two nested records differ."""
    before, after = _flat(was), _flat(now)
    return [
        f"{key} was {_shown(before.get(key))} and is {_shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
