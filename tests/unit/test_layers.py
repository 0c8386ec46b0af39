"""No package imports one above it."""

import ast
from pathlib import Path

import pytest

from tests.support.program import ROOT

LAYERS = [
    {"errors"},
    {"atomic", "device", "distributed", "extras", "program", "progress"},
    {"checksums", "settings", "tasks"},
    {"concepts"},
    {"data", "visualize"},
    {"models"},
    {"features", "losses"},
    {"segmentation"},
    {"evaluation"},
    {"reports"},
    {"training"},
    {"commands"},
    {"api", "cli", "__main__", "__init__"},
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "timm", "transformers", "spacy", "pytorch_lightning", "torchvision", "PIL", "numpy", "scipy"}
PATTERNS = ("*/settings.py", "commands/*.py", "settings/*.py", "cli.py", "api.py")
LIGHT = sorted(path for pattern in PATTERNS for path in (ROOT / "simzss").glob(pattern))


def imported(path: Path, everywhere: bool = True) -> set[str]:
    """Modules that a file imports: everywhere, or when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "simzss").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upwards(path):
    parts = path.relative_to(ROOT / "simzss").with_suffix("").parts
    below = {module for module in imported(path) if module.startswith("simzss.")}
    rooms = {module.split(".")[1] for module in below}
    if parts[0] not in ("__init__", "cli", "api", "commands"):
        assert "data_prep" not in rooms and "commands" not in rooms
    assert not [room for room in rooms - {parts[0], "data_prep"} if HEIGHT[room] > HEIGHT[parts[0]]]


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_and_verbs_import_nothing_heavy(path):
    assert not {module.partition(".")[0] for module in imported(path, everywhere=False)} & HEAVY
