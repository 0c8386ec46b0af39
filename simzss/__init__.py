"""simzss: an open vocabulary for any frozen vision backbone.

    import simzss

    model = simzss.load_model("outputs/run/model")
    prediction = simzss.Segmenter(model).predict("photo.jpg", ["cat", "dog"])

The names below are imported when they are first used, so that `import simzss` stays quick.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

_PUBLIC = {
    "Segmenter": "simzss.segmentation.segmenter",
    "load_model": "simzss.models.checkpoint",
    "train": "simzss.api",
    "train_masks": "simzss.api",
    "cache_features": "simzss.api",
    "evaluate": "simzss.api",
    "list_backbones": "simzss.api",
    "list_benchmarks": "simzss.api",
    "SimZSSError": "simzss.errors",
    "InputError": "simzss.errors",
    "ConfigError": "simzss.errors",
    "DataError": "simzss.errors",
    "ModelError": "simzss.errors",
}

__all__ = [
    "ConfigError",
    "DataError",
    "InputError",
    "ModelError",
    "Segmenter",
    "SimZSSError",
    "__version__",
    "cache_features",
    "evaluate",
    "list_backbones",
    "list_benchmarks",
    "load_model",
    "train",
    "train_masks",
]

if TYPE_CHECKING:
    from simzss.api import cache_features, evaluate, list_backbones, list_benchmarks, train, train_masks
    from simzss.errors import ConfigError, DataError, InputError, ModelError, SimZSSError
    from simzss.models.checkpoint import load_model
    from simzss.segmentation.segmenter import Segmenter

if not Path(__file__).with_name("data_prep").is_dir():
    # A checkout has `data_prep` beside this package; the wheel has it inside. Either way it is `simzss.data_prep`.
    __path__.append(str(Path(__file__).resolve().parent.parent))


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'simzss' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
