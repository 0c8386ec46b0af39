import subprocess
import sys

import pytest
import yaml

from simzss import __version__, cli
from simzss.config import choices, compose, to_plain
from simzss.errors import InputError, nearest
from simzss.segmentation.run import parse_classes
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
    assert all(f"simzss {verb}" in out for verb in cli.VERBS)


def test_version(run):
    assert run("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("verb", ["train", "eval", "segment"])
def test_help_of_a_verb_lists_keys_and_choices(run, verb):
    code, out, err = run(verb, "data.nothing=1", "--help")
    assert (code, err) == (0, "")
    assert (ROOT / "conf" / f"{verb}.yaml").read_text(encoding="utf-8") in out
    assert f"protocol: {', '.join(choices('protocol'))}" in out
    assert ("loss: lit, release, simzss" in out) == (verb == "train")


def test_help_of_report(run):
    code, out, err = run("report", "a", "--help")
    assert (code, err) == (0, "")
    assert out.strip() == (ROOT / "conf" / "report.yaml").read_text(encoding="utf-8").strip()


def test_help_of_cache(run):
    code, out, err = run("cache", "--help")
    assert (code, err) == (0, "")
    assert (ROOT / "conf" / "cache.yaml").read_text(encoding="utf-8") in out
    assert f"backbone: {', '.join(choices('backbone'))}" in out


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


def test_config_show(run):
    code, out, err = run("config", "show", "train", "seed=7", "experiment=demo")
    assert (code, err) == (0, "")
    assert yaml.safe_load(out) == to_plain(compose("train", ["seed=7", "experiment=demo"]))
    assert yaml.safe_load(out)["seed"] == 7


def test_config_validate(run):
    assert run("config", "validate", "train", "data.shards=x") == (0, "valid\n", "")
    refused(run("config", "validate", "train"), "data.shards=")
    refused(run("config", "validate", "train", "data.shards=x", "text=pretrained"), "text.weights=")
    refused(run("config", "validate", "eval", "benchmark=voc20"), "benchmark.root=", "model=")
    refused(run("config", "validate", "train", "data.shard=x"), "'data.shard'", "data.shards")
    assert run("config", "validate", "report") == (0, "valid\n", "")
    refused(run("config", "validate", "report", "confidence=95"), "confidence=95")
    assert run("config", "validate", "cache", "data.shards=x", "output=y") == (0, "valid\n", "")
    refused(run("config", "validate", "cache"), "data.shards=", "output=")
    refused(run("config", "validate", "cache", "data.shards=x", "output=y", "views=5"), "views=5")


@pytest.mark.parametrize(
    "override",
    ["data.batch_size=many", "data.batch_size=0", "data.kind=disk", "loss.target=concep", "trainer.epochs=[1]"],
)
def test_config_validate_refuses_wrong_values(run, override):
    refused(run("config", "validate", "train", "data.shards=x", override), override.partition("=")[0])


def test_config_copy(run, tmp_path):
    target = tmp_path / "new" / "mine.yaml"
    assert run("config", "copy", "train", str(target), "seed=7") == (0, f"{target}\n", "")
    assert yaml.safe_load(target.read_text(encoding="utf-8")) == to_plain(compose("train", ["seed=7"]))
    before = target.read_bytes()
    refused(run("config", "copy", "train", str(target), "seed=8"), str(target), "exists")
    refused(run("config", "copy", "train", str(tmp_path / "other.yaml"), "sed=8"), "'sed'")
    assert target.read_bytes() == before
    assert not (tmp_path / "other.yaml").exists()


def test_config_copy_below_a_file(run, tmp_path):
    (tmp_path / "file").touch()
    refused(run("config", "copy", "train", str(tmp_path / "file" / "x.yaml")), str(tmp_path / "file"))


def test_config_help(run):
    code, out, _ = run("config", "--help")
    assert code == 0 and "config" in out


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", [["cat"]]),
        ("cat/kitten, dog", [["cat", "kitten"], ["dog"]]),
        (" green grass ,cat , ", [["green grass"], ["cat"]]),
        (["cat", "dog/puppy"], [["cat"], ["dog", "puppy"]]),
        ([7, "cat"], [["7"], ["cat"]]),
    ],
)
def test_parse_classes(text, expected):
    assert parse_classes(text) == expected


@pytest.mark.parametrize("text", ["", " ", ",", " , ,", [], [""]])
def test_parse_no_classes(text):
    with pytest.raises(InputError, match="classes is empty"):
        parse_classes(text)


def test_nearest():
    assert nearest("trian", ["train", "eval"]) == "did you mean train?"
    assert nearest("xyz", ["train", "eval", "eval"]) == "known: eval, train"
    assert nearest("voc", ["voc20", "voc21", "voc22", "voc23"], limit=2).count("voc") == 2
