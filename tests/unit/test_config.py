from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from simzss.config import (
    CONF_DIR,
    choices,
    compose,
    fill,
    find_file,
    groups,
    groups_of,
    load_choice,
    missing_keys,
    parse_program,
    require_complete,
    save,
    to_plain,
)
from simzss.errors import InputError

ROOTS: dict[str, list[str]] = {
    "train": [],
    "train_masks": [],
    "cache": [],
    "eval": ["benchmark=voc20"],
    "segment": [],
    "report": [],
    "captions": [],
    "clip": [],
}
FILES = sorted(str(path.relative_to(CONF_DIR)) for path in CONF_DIR.glob("*/*.yaml"))


def read(name: str) -> dict:
    """A configuration file without hydra, numbers as YAML 1.2 reads them."""
    content = yaml.safe_load((CONF_DIR / name).read_text(encoding="utf-8"))
    return {key: _numbers(value) for key, value in (content or {}).items()}


def _numbers(value):
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def refused(root: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        compose(root, list(overrides))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("root", ROOTS)
def test_root_composes_and_holds_its_own_keys(root):
    config = to_plain(compose(root, ROOTS[root]))
    own = read(f"{root}.yaml")
    assert {key: config[key] for key in own if key != "defaults"} == {
        key: value for key, value in own.items() if key != "defaults"
    }
    assert {next(iter(entry)) for entry in own["defaults"] if isinstance(entry, dict)} == set(groups_of(root))


def test_every_file_belongs_to_a_group_of_a_verb():
    used = {group for root in ROOTS for group in groups_of(root)}
    assert set(groups()) == used == {Path(name).parts[0] for name in FILES}


def roots_of(name: str) -> list[str]:
    return [root for root in ROOTS if Path(name).parts[0] in groups_of(root)]


@pytest.mark.parametrize(
    ("root", "name"),
    [(root, name) for name in FILES for root in roots_of(name) if not name.startswith("experiment")],
)
def test_every_choice_composes(root, name):
    group, choice = Path(name).parts[0], Path(name).stem
    config = to_plain(compose(root, [*ROOTS[root], f"{group}={choice}"]))
    assert config[group] == read(name)


def experiment(name):
    """Chosen groups and set values of an experiment, those of the experiments that it builds on included."""
    content = read(f"experiment/{name}.yaml")
    chosen, values = {}, {}
    for entry in content.pop("defaults"):
        if isinstance(entry, str):
            base_chosen, base_values = experiment(entry)
            chosen |= base_chosen
            values |= base_values
        else:
            ((group, choice),) = entry.items()
            chosen[group.removeprefix("override /")] = choice
    for key, inner in content.items():
        values[key] = values.get(key, {}) | inner if isinstance(inner, dict) else inner
    return chosen, values


@pytest.mark.parametrize("name", [Path(name).stem for name in FILES if name.startswith("experiment")])
def test_every_experiment_composes(name):
    chosen, _ = experiment(name)
    roots = [root for root in ROOTS if "experiment" in groups_of(root) and name in choices("experiment", root)]
    suited = ("train", "train_masks", "eval", "segment")
    assert roots == [root for root in suited if set(chosen) <= set(groups_of(root))] != []
    for root in roots:
        check_experiment(root, name)


def check_experiment(root, name):
    chosen, values = experiment(name)
    config = to_plain(compose(root, [*ROOTS[root], f"experiment={name}"]))
    assert chosen and values
    for group, choice in chosen.items():
        expected = read(f"{group}/{choice}.yaml") | values.pop(group, {})
        assert config[group] == {key: _numbers(value) for key, value in expected.items()}
    for key, inner in values.items():
        if isinstance(inner, dict):
            assert {k: config[key][k] for k in inner} == {k: _numbers(v) for k, v in inner.items()}
        else:
            assert config[key] == inner
    assert set(config) == set(to_plain(compose(root, ROOTS[root])))


def test_override_wins_over_an_experiment():
    assert compose("train", ["experiment=demo"]).data.kind == "cached"
    assert compose("train", ["data=shards", "experiment=demo"]).data.kind == "stream"
    assert compose("train", ["data.batch_size=7", "experiment=demo"]).data.batch_size == 7
    assert compose("train", ["experiment=demo", "backbone=resnet50"]).backbone.name == "resnet50"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.shards=a/*.tar", "a/*.tar"),
        ("data.shards=[a.tar,b.tar]", ["a.tar", "b.tar"]),
        ("data.shards=/my photos/a.tar", "/my photos/a.tar"),
        ("data.batch_size=7", 7),
        ("optim.lr=1e-3", 1e-3),
        ("optim.betas=[0.8,0.9]", [0.8, 0.9]),
        ("trainer.micro_batch=null", None),
        ("trainer.progress_bar=false", False),
    ],
)
def test_values(override, expected):
    key = override.partition("=")[0]
    assert to_plain(OmegaConf.select(compose("train", [override]), key)) == expected


@pytest.mark.parametrize("pattern", ["shards/{coco,flickr}/*.tar", "{a,b}/*.tar", "s/{000..009}.tar"])
def test_brace_patterns(pattern):
    assert compose("train", [f"data.shards={pattern}"]).data.shards == pattern


@pytest.mark.parametrize("classes", ["cat,dog,green grass", "cat/kitten,dog/puppy", "dog's bowl", "cat, dog"])
def test_classes_as_the_help_shows_them(classes):
    assert compose("segment", [f"classes={classes}"]).classes == classes


@pytest.mark.parametrize(
    "path",
    [
        "Fotos/Übung/*.tar",
        "写真/*.tar",
        "runs/lr=1",
        "photos (2)/*.tar",
        "it's/*.tar",
        "a,b/*.tar",
        "a;b",
        "s[0-3].tar",
    ],
)
def test_paths_with_signs(path):
    assert compose("train", [f"data.shards={path}"]).data.shards == path


@pytest.mark.parametrize("name", ["2024_01_01", "20240101", "1e3", "007"])
def test_folder_whose_name_is_a_number(name):
    assert compose("train", [f"output_dir={name}"]).output_dir == name


@pytest.mark.parametrize(
    ("root", "override", "says"),
    [
        ("train", "backbone=dinov2_vitb14", ["backbone=dinov2_vitb14 ", "dinov2_vitb14_reg4"]),
        ("train", "loss=simzs", ["loss=simzs ", "simzss"]),
        ("train", "experiment=demoo", ["experiment=demoo ", "demo"]),
        ("train", "data=zzz", ["data=zzz ", "shards"]),
        ("train", "backbon=resnet50", ["'backbon'", "backbone"]),
        ("train", "data.batchsize=3", ["'data.batchsize'", "data.batch_size"]),
        ("train", "dat.batch_size=3", ["'dat.batch_size'", "data.batch_size"]),
        ("train", "sed=3", ["'sed'", "seed"]),
        ("segment", "clases=cat", ["'clases'", "classes"]),
        ("segment", "protocol=tc", ["protocol=tc ", "tcl"]),
        ("eval", "benchmark=voc22", ["benchmark=voc22 ", "voc20"]),
        ("train", "seed", ["'seed'", "key=value"]),
        ("train", "--seed=3", ["seed"]),
        ("train", "output_dir=${nothing}", ["nothing"]),
    ],
)
def test_unknown_names_are_one_line_with_the_nearest(root, override, says):
    message = refused(root, override)
    assert all(part in message for part in says), message


def test_unknown_name_behind_right_ones():
    message = refused("train", "seed=3", "experiment=demo", "optim.lrr=1")
    assert "'optim.lrr'" in message and "optim.lr" in message and "demo" not in message


@pytest.mark.parametrize(
    ("override", "nearest"), [("reedout=both", "readout"), ("benchmark.rot=x", "benchmark.root"), ("modl=x", "model")]
)
def test_unknown_key_of_eval(override, nearest):
    message = refused("eval", "benchmark=voc20", override)
    assert override.partition("=")[0] in message and nearest in message


def test_nearest_key_of_the_chosen_group():
    message = refused("train", "text=pretrained", "text.trainable_layer=3")
    assert "text.trainable_layers" in message


@pytest.mark.parametrize("override", ["data.batch_size=[1", "data.batch_size={", "optim.betas=[0.9,"])
def test_value_that_does_not_parse_names_its_key(override):
    assert override.partition("=")[0] in refused("train", override)


def test_missing_benchmark_names_the_choices():
    message = refused("eval")
    assert "benchmark=" in message
    assert "voc20" in message


@pytest.mark.parametrize("override", ["=3", "backbone=null", "backbone=3"])
def test_override_that_is_none(override):
    refused("train", override)


def test_references_are_resolved():
    config = compose("train", ["output_dir=runs/${seed}", "seed=5"])
    assert OmegaConf.to_container(config, resolve=False)["output_dir"] == "runs/5"


def test_compose_leaves_nothing_behind():
    first = compose("train", ["seed=5", "backbone=resnet50"])
    with pytest.raises(InputError):
        compose("train", ["nothing=1"])
    assert compose("train", []).seed == 0
    assert compose("train", []).backbone.name != "resnet50"
    assert (first.seed, first.backbone.name) == (5, "resnet50")


def test_missing_values():
    config = compose("train", [])
    assert missing_keys(config) == ["data.shards"]
    with pytest.raises(InputError, match=r"data\.shards"):
        require_complete(config)
    require_complete(compose("train", ["data.shards=x"]))
    config = compose("eval", ["benchmark=voc20"])
    assert missing_keys(config) == ["benchmark.root", "model"]
    with pytest.raises(InputError, match=r"benchmark\.root=.*model="):
        require_complete(config)


def test_save(tmp_path):
    config = compose("train", ["output_dir=runs/${seed}", "seed=5", "data.shards=a b/*.tar"])
    save(config, tmp_path / "new" / "config.yaml")
    stored = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text(encoding="utf-8"))
    assert (stored["output_dir"], stored["seed"], stored["data"]["shards"]) == ("runs/5", 5, "a b/*.tar")
    assert to_plain(OmegaConf.load(tmp_path / "new" / "config.yaml")) == to_plain(config)


def test_load_choice():
    assert load_choice("benchmark", "voc20").classes == "names/voc20.txt"
    with pytest.raises(InputError, match=r"benchmark=voc22.*voc20"):
        load_choice("benchmark", "voc22")


def test_choices_are_the_files():
    assert choices("loss") == ["lit", "release", "simzss"]
    assert choices("nothing") == []


def test_find_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_file("names/voc20.txt") == CONF_DIR / "names" / "voc20.txt"
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "voc20.txt").touch()
    assert find_file("names/voc20.txt").resolve() == tmp_path / "names" / "voc20.txt"
    assert find_file(str(tmp_path / "names" / "voc20.txt")) == tmp_path / "names" / "voc20.txt"
    for name in ("names/none.txt", "names"):
        with pytest.raises(InputError, match=name):
            find_file(name)


@dataclass
class Program:
    """Does this and that."""

    output: str = "???"
    count: int = 3
    share: float = 0.5
    quiet: bool = False
    names: list[str] = field(default_factory=list)
    folder: str | None = None


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("count=12", 12),
        ("count=-1", -1),
        ("share=2", 2.0),
        ("share=1e-3", 0.001),
        ("quiet=true", True),
        ("quiet=false", False),
        ("names=[]", []),
        ("names=[a,b c]", ["a", "b c"]),
        ("names=[1,2]", ["1", "2"]),
        ("folder=null", None),
        ("folder=a/b.c", "a/b.c"),
        ("output=a b=c", "a b=c"),
        ("output=x/{a,b}/*.tar", "x/{a,b}/*.tar"),
    ],
)
def test_program_types(argument, expected):
    config = parse_program(Program, ["output=o", argument])
    assert isinstance(config, Program)
    value = getattr(config, argument.partition("=")[0])
    assert value == expected and type(value) is type(expected)


def test_program_defaults_and_argv(monkeypatch):
    assert parse_program(Program, ["output=o"]) == Program("o")
    monkeypatch.setattr("sys.argv", ["program", "output=p", "count=1", "count=2"])
    assert parse_program(Program) == Program("p", count=2)


@pytest.mark.parametrize(
    "value",
    [
        "2024_01_01",
        "007",
        "1e3",
        "yes",
        "12:30:00",
        "run #2",
        "${count}",
        "*.tar",
        "{a,b}/*.tar",
        "@x",
        "'x",
        "[x",
        "a: b",
    ],
)
def test_program_text_is_taken_as_written(value):
    assert parse_program(Program, [f"output={value}"]).output == value


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["output=o", "outptu=x"], ["'outptu'", "output"]),
        (["output=o", "zzz=1"], ["'zzz'", "count", "names", "output"]),
        (["output=o", "count=many"], ["count=many"]),
        (["output=o", "count=2.5"], ["count=2.5"]),
        (["output=o", "count="], ["count="]),
        (["output=o", "share=half"], ["share=half"]),
        (["output=o", "quiet=maybe"], ["quiet=maybe"]),
        (["output=o", "names=a"], ["names=a"]),
        (["output"], ["'output'", "key=value"]),
        (["count=3"], ["output="]),
        ([], ["output="]),
    ],
)
def test_program_refuses_in_one_line(arguments, says):
    with pytest.raises(InputError) as caught:
        parse_program(Program, arguments)
    message = str(caught.value)
    assert all(part in message for part in says), message
    assert "\n" not in message


@pytest.mark.parametrize("argument", ["names=[a", "count={", "names=[*]"])
def test_program_refuses_what_does_not_parse(argument):
    with pytest.raises(InputError) as caught:
        parse_program(Program, ["output=o", argument])
    assert argument.partition("=")[0] in str(caught.value)


def test_program_help(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_program(Program, ["output=o", "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "Does this and that." in printed
    for part in ("output: str = required", "count: int = 3", "names", "quiet: bool = False"):
        assert part in printed


@dataclass(frozen=True)
class Typed:
    count: int | None
    share: float
    flag: bool
    name: str | None
    words: str | list[str] | None


def test_fill_reads_text_by_the_type_of_its_field():
    values = {"count": "3", "share": "1e-3", "flag": "true", "name": "3", "words": ["a"]}
    assert fill(Typed, values) == Typed(3, 0.001, True, "3", ["a"])
    assert fill(Typed, values | {"count": None, "share": 2, "name": None, "words": "7"}) == Typed(
        None, 2, True, None, "7"
    )


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("count", "many", "typed.count=many: expected an integer"),
        ("share", "x", "typed.share=x: expected a number"),
        ("flag", "3", "typed.flag=3: expected true or false"),
        ("share", None, "typed.share=null: a value is needed"),
    ],
)
def test_fill_names_the_key(key, value, says):
    values = {"count": 1, "share": 1.0, "flag": True, "name": "x", "words": None}
    with pytest.raises(InputError) as caught:
        fill(Typed, values | {key: value}, "typed.")
    assert str(caught.value) == says
