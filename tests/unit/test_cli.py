import subprocess
import sys

import pytest
import yaml

from simzss import __version__, cli
from simzss.commands.verbs import VERBS
from simzss.errors import InputError, nearest
from tests.support.files import make_image_folder
from tests.support.program import ROOT, exit_code

HEAVY = ("torch", "spacy", "hydra", "omegaconf", "timm", "transformers", "numpy", "PIL", "pytorch_lightning")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run `simzss` in an empty folder; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = exit_code(lambda: cli.dispatch(sys.argv[1:]), arguments, monkeypatch)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def refused(result: tuple[int, str, str], *parts: str) -> None:
    """Exit code 2 and one line that holds every part."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert all(part in err for part in parts), err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["trian"]])
def test_quick_answers_import_nothing_heavy(arguments):
    code = (
        "import sys; from simzss.cli import dispatch\n"
        f"try: dispatch({arguments!r})\n"
        "except Exception: pass\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize(
    ("arguments", "code", "lines"),
    [(["--version"], 0, 0), (["trian"], 2, 1), (["config", "show", "train", "sed=1"], 2, 1)],
)
def test_as_a_program(arguments, code, lines):
    done = subprocess.run(
        [sys.executable, "-m", "simzss", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert done.stderr.count("\n") == lines
    assert "Traceback" not in done.stderr


def test_interrupt_has_its_own_exit_code(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "dispatch", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_message_of_several_lines_becomes_one(monkeypatch, capsys):
    def failing(arguments):
        raise InputError("one\n  two\n\nthree")

    monkeypatch.setattr(cli, "dispatch", failing)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: one two three\n"


def test_a_defect_keeps_its_traceback(monkeypatch):
    def failing(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "dispatch", failing)
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help(run, arguments):
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert __version__ in out
    assert all(f"simzss {verb}" in out for verb in VERBS)


def test_version(run):
    assert run("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(run, verb):
    code, out, err = run(verb, "data.nothing=1", "--help")
    assert (code, err) == (0, "")
    assert f"simzss {verb} " in out and "output" in out


@pytest.mark.parametrize(
    ("word", "verb"),
    [("trian", "train"), ("cahce", "cache"), ("segmnet", "segment"), ("evaluate", "eval"), ("reprot", "report")],
)
def test_unknown_verb(run, word, verb):
    refused(run(word, "seed=1"), f"'{word}'", verb)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["show"],
        ["list", "train"],
        ["show", "trian"],
        ["show", "config"],
        ["copy", "train"],
        ["copy", "train", "seed=1"],
    ],
)
def test_config_usage(run, arguments):
    refused(run("config", *arguments), "usage", "config")


def test_config_show_marks_what_is_still_to_be_given(run):
    code, out, err = run("config", "show", "train", "seed=7", "experiment=demo")
    assert (code, err) == (0, "")
    shown = yaml.safe_load(out)
    assert (shown["seed"], shown["data"]["shards"], shown["text"]["layers"]) == (7, None, 4)
    code, out, _ = run("config", "show", "eval", "benchmark=voc20")
    assert (code, yaml.safe_load(out)["model"]) == (0, "???")


def test_config_validate(run):
    assert run("config", "validate", "train", "data.shards=x") == (0, "valid\n", "")
    refused(run("config", "validate", "train"), "data.shards=")
    refused(run("config", "validate", "eval", "benchmark=voc20"), "benchmark.root=", "model=")
    refused(
        run("config", "validate", "threshold", "benchmark=all", "benchmark.root=r", "model=m"), "benchmark.task=all"
    )
    refused(run("config", "validate", "train", "data.shards=x", "data.batch_size=many"), "data.batch_size=many")


def test_config_copy_edit_run(run, tmp_path):
    target = tmp_path / "new" / "mine.yaml"
    assert run("config", "copy", "train", str(target), "seed=7") == (0, f"{target}\n", "")
    before = target.read_bytes()
    refused(run("config", "copy", "train", str(target), "seed=8"), str(target), "exists")
    refused(run("config", "copy", "train", str(tmp_path / "other.yaml"), "sed=8"), "'sed'")
    assert target.read_bytes() == before and not (tmp_path / "other.yaml").exists()
    refused(run("config", "validate", "train", "--config", str(target)), "data.shards=")
    target.write_text(target.read_text().replace("shards: ???", "shards: x"))
    for source in (["--config", str(target)], [f"--config={target}"], [f"config={target}"]):
        assert run("config", "validate", "train", *source) == (0, "valid\n", "")
    _, out, _ = run("config", "show", "train", f"config={target}", "optim.lr=0.5")
    assert (yaml.safe_load(out)["seed"], yaml.safe_load(out)["optim"]["lr"]) == (7, 0.5)


def test_config_copy_below_a_file(run, tmp_path):
    (tmp_path / "file").touch()
    refused(run("config", "copy", "train", str(tmp_path / "file" / "x.yaml")), str(tmp_path / "file"))


def test_own_presets(run, tmp_path):
    (tmp_path / "own" / "loss").mkdir(parents=True)
    (tmp_path / "own" / "loss" / "mine.yaml").write_text("concept_weight: 7\n")
    refused(run("config", "validate", "train", "data.shards=x", "loss=mine"), "loss=mine")
    assert run("config", "validate", "train", "data.shards=x", "loss=mine", "conf_dir=own") == (0, "valid\n", "")
    refused(run("config", "validate", "train", "conf_dir=gone"), "conf_dir=gone")


@pytest.fixture
def photos(tmp_path):
    make_image_folder(tmp_path / "sub", ["a.png"])
    return make_image_folder(tmp_path, ["a.png", "b.png", "c=d.png"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["classes=", "model="]),
        (["model=m", "classes=cat"], ["no image"]),
        (["a.png", "classes=cat"], ["model="]),
        (["a.png", "model=m"], ["classes="]),
        (["gone.png", "model=m", "classes=cat"], ["gone.png", "does not exist"]),
        (["a.png", "gone.png", "model=m", "classes=cat"], ["gone.png", "does not exist"]),
        (["sub", "model=m", "classes=cat"], ["sub"]),
        (["a.png", "model=m", "classes="], ["classes is empty"]),
        (["a.png", "model=m", "classes=' '"], ["classes is empty"]),
        (["a.png", "model=m", "classes=[]"], ["classes is empty"]),
        (["a.png", "sub/a.png", "model=m", "classes=cat"], ["'a'"]),
        (["a.png", "b.png", "a.png", "model=m", "classes=cat"], ["'a'"]),
        (["a.png", "modle=m", "classes=cat"], ["'modle'", "model"]),
        (["a.png", "model=m", "classes=cat", "protocol=tc"], ["protocol=tc", "tcl"]),
        (["--fast", "a.png", "model=m", "classes=cat"], ["--fast"]),
        (["a.png", "model=gone", "classes=cat"], ["gone", "does not exist"]),
        (["./c=d.png", "model=gone", "classes=cat"], ["gone", "does not exist"]),
    ],
)
def test_segment_refuses(run, photos, arguments, says):
    refused(run("segment", *arguments), *says)
    assert not (photos / "outputs").exists()


def test_segment_takes_the_classes_of_its_help(run, photos):
    refused(run("segment", "a.png", "model=gone", "classes=cat,dog,green grass"), "gone", "does not exist")


@pytest.mark.parametrize(("classes", "says"), [(",", "classes is empty"), ("7", "gone")])
def test_segment_with_odd_classes(run, photos, classes, says):
    refused(run("segment", "a.png", "model=gone", f"classes={classes}"), says)


def test_segment_with_many_classes(run, photos):
    classes = ",".join(f"thing {i}" for i in range(60))
    refused(run("segment", "a.png", "model=gone", f"classes=[{classes}]"), "gone", "does not exist")


def test_nearest():
    assert nearest("trian", ["train", "eval"]) == "did you mean train?"
    assert nearest("xyz", ["train", "eval", "eval"]) == "known: eval, train"
    assert nearest("voc", ["voc20", "voc21", "voc22", "voc23"], limit=2).count("voc") == 2
