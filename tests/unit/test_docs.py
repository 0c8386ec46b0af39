"""README, pages and headers of presets: their commands are parsed, their code compiles, their links lead somewhere."""

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from simzss.commands import config as config_command
from simzss.commands.prep import PROGRAMS
from simzss.commands.verbs import VERBS, settings_of
from simzss.settings import program as programs
from simzss.settings.compose import CONF_DIR, split, user_presets
from simzss.settings.files import save
from simzss.settings.renamed import KEYS, VALUES, renamed
from tests.support.pages import PAGES, blocks, write_presets
from tests.support.program import ROOT

HEADED = sorted(path for kind in ("yaml", "sbatch") for path in CONF_DIR.rglob(f"*.{kind}"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
OTHERS = ("git", "cd", "source", "pre-commit")


def commands(path: Path) -> list[str]:
    """Commands of a page's blocks, or of the comments at the head of a preset."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        lines = "\n".join(block.text for block in blocks(path, "bash")).splitlines()
    else:
        lines = re.findall(r"^#   (.*)$", text, re.MULTILINE)
    return [line for line in lines if line.strip() and not line.startswith("#")]


class _ParsedError(Exception):
    """Ends a program once it has its settings."""


@pytest.fixture(scope="module")
def real_cpu():
    return settings_of("train", ["experiment=real_cpu", "data.shards=x", "text.weights=y"])


@pytest.fixture
def understand(tmp_path, monkeypatch, real_cpu):
    """Parse a command as it would be parsed, in a folder with the presets that the pages show, and run nothing."""
    monkeypatch.chdir(tmp_path)
    write_presets(tmp_path)
    shutil.copytree(tmp_path / "conf", tmp_path / "presets")
    save(real_cpu, tmp_path / "outputs" / "real_cpu" / "config.yaml")

    def parse_only(*arguments, **options):
        programs.parse(*arguments, **options)
        raise _ParsedError

    def run_program(module: str, arguments: list[str]) -> None:
        found = importlib.import_module(module)
        found = importlib.import_module(f"{module}.program") if hasattr(found, "__path__") else found
        monkeypatch.setattr(found, "parse", parse_only)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(_ParsedError):
            found.main()

    def verb(name: str, arguments: list[str]) -> None:
        if name == "prep":
            assert arguments[0] in PROGRAMS
            run_program(f"simzss.data_prep.{arguments[0]}", arguments[1:])
            return
        rest, config, conf_dir = programs.split_sources(arguments)
        overrides = [word for word in rest if re.match(r"[A-Za-z_][\w.]*=", word)]
        for override in overrides:
            assert renamed(*split(override), quiet=True) == split(override), "an old name"
        with user_presets(conf_dir):
            if name == "config":
                config_command.run(rest, config)
            elif "--help" not in rest:
                assert len(overrides) == len(rest) or name in ("segment", "report")
                settings_of(name, overrides, config)
            else:
                assert name in VERBS

    def understand(command: str) -> None:
        words = shlex.split(command, comments=True)
        while re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        head, *rest = words
        if head == "sbatch":
            script = next(word for word in rest if word.endswith(".sbatch"))
            assert (ROOT / script).is_file()
            name = {"train": ["train"], "captions": ["prep", "captions"]}[Path(script).stem]
            rest = [*name, *rest[rest.index(script) + 1 :]]
            verb(rest[0], rest[1:])
        elif "simzss" in words and head in ("simzss", "torchrun", "srun"):
            rest = words[words.index("simzss") + 1 :]
            verb(rest[0], rest[1:])
        elif head == "python" and rest[:2] == ["-m", "benchmarks.highres"]:
            run_program(rest[1], rest[2:])
        elif head == "python":
            assert importlib.util.find_spec(rest[1]) if rest[0] == "-m" else (ROOT / rest[0]).is_file()
        elif head == "make":
            names = [word for word in rest if "=" not in word]
            assert set(names) <= set(TARGETS) and names
            benches = [word.removeprefix("BENCH=") for word in rest if word.startswith("BENCH=")]
            assert all((ROOT / "benchmarks" / f"{bench}.py").is_file() for bench in benches)
        elif head == "pip":
            assert rest[0] == "install" and set(re.findall(r"\w+", rest[1])) <= set(EXTRAS)
        else:
            assert head in OTHERS, "a program that this test does not know"

    return understand


@pytest.mark.parametrize("path", [*PAGES, *HEADED], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_understood(path, understand):
    for command in commands(path):
        try:
            understand(command)
        except BaseException as error:
            error.add_note(f"{path}: {command}")
            raise


def test_there_are_commands():
    assert len([command for path in PAGES for command in commands(path)]) > 60
    assert len([command for path in HEADED for command in commands(path)]) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page):
    for block in blocks(page, "python"):
        compile(block.text, str(page), "exec")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            linked = page.parent / name if name else page
            assert linked.is_file(), target
            assert not anchor or anchor in anchors(linked), target


def test_readme_is_short_and_names_every_extra():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    extras = text.partition("| extra | for |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in extras.splitlines()[2:]))) == set(EXTRAS)


def test_old_names_are_listed():
    table = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").partition("## Old names")[2]
    listed = [*KEYS.items(), *((old, new) for (_, old), new in VALUES.items())]
    assert {word for pair in listed for name in pair for word in name.split(".")} <= set(re.findall(r"\w+", table))


def test_pages_build(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()
