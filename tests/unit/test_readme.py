"""The commands of the README and of the headers in conf/: every verb, program and key that they name exists."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest

from simzss.config import CONF_DIR, compose, parse_program, root_of

ROOT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(
    r"^(?:#)?\s*(simzss (?:train|cache|eval|segment|threshold|report) .*|python -m data_prep\..*)$", re.MULTILINE
)
SOURCES = [ROOT / "README.md", *sorted(CONF_DIR.rglob("*.yaml"))]


def commands() -> list[str]:
    found = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            text = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
        found += [f"{line.partition('  #')[0].strip()}" for line in COMMAND.findall(text)]
    return found


def test_there_are_commands():
    assert len(commands()) > 20


@pytest.mark.parametrize("command", commands())
def test_command_is_understood(command):
    words = shlex.split(command)
    overrides = [word for word in words if re.match(r"[A-Za-z_][\w.]*=", word)]
    if words[0] == "simzss":
        compose(root_of(words[1], overrides), overrides)
        return
    root = words[2].removeprefix("data_prep.")
    if (CONF_DIR / f"{root}.yaml").is_file():
        compose(root, overrides)
        return
    package = importlib.import_module(words[2])
    program = importlib.import_module(f"{words[2]}.program") if hasattr(package, "__path__") else package
    configs = [
        item
        for item in vars(program).values()
        if dataclasses.is_dataclass(item) and item.__module__ == program.__name__
    ]
    (config,) = [item for item in configs if item.__name__.endswith("Config")]
    parse_program(config, overrides)
