"""Imports what the programs import, so that their forks start at once."""

import importlib

from tests.support.program import ROOT

_LIBRARIES = (
    "spacy",
    "timm",
    "transformers",
    "torchmetrics",
    "pytorch_lightning",
    "scipy.optimize",
    "yaml",
    "open_clip",
)


def import_everything() -> None:
    """Import every module of the package and what it imports when it runs."""
    for path in sorted((ROOT / "simzss").rglob("*.py")):
        if path.stem != "__main__":
            parts = path.relative_to(ROOT).with_suffix("").parts
            importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    for name in ("data_prep.captions.program", *_LIBRARIES):
        importlib.import_module(name)
