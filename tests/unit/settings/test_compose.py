"""Presets, experiments, files and overrides become the settings of a verb."""

import logging
import os
import re
from pathlib import Path

import pytest
import yaml

from simzss.commands.verbs import VERBS, settings_of, training_verb
from simzss.errors import ConfigError
from simzss.settings.compose import CONF_DIR, choices, compose, find_file, groups_of, load_choice, user_presets
from simzss.settings.files import save
from simzss.settings.help import help_text
from simzss.settings.messages import known_keys

GIVEN = {
    "train": ["data.shards=x"],
    "train-masks": ["model=m", "masks.benchmark=voc21", "masks.root=r"],
    "cache": ["data.shards=x", "output=o"],
    "eval": ["model=m", "benchmark=voc20", "benchmark.root=r"],
    "segment": ["model=m", "classes=cat"],
    "threshold": ["model=m", "benchmark=voc21", "benchmark.root=r"],
    "report": [],
}
NEEDED = {
    "experiment=real_cpu": ["text.weights=w"],
    "text=pretrained": ["text.weights=w"],
    "benchmark=retrieval": ["benchmark.captions=c"],
}
FIRST = {group: verb for verb in reversed(VERBS) for group in groups_of(verb)}
CHOICES = [
    (verb, group, name)
    for verb in VERBS
    for group, default in groups_of(verb).items()
    for name in choices(group, verb)
    if FIRST[group] == verb or group == "experiment" or name == default  # one verb for each choice, all for experiments
]


def refused(verb: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings_of(verb, [*GIVEN[verb], *overrides])
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize(("verb", "group", "name"), CHOICES)
def test_every_choice_of_every_group_holds_and_says_what_its_file_says(verb, group, name):
    override = f"{group}={name}"
    settings = settings_of(verb, [*GIVEN[verb], override, *NEEDED.get(override, [])])
    if group == "experiment":
        return
    plain = settings.plain()[group]
    for key, value in load_choice(group, name).items():
        if key not in ("root", "limit"):
            assert _matches(plain[key], value), (key, plain[key], value)


def _matches(found, written) -> bool:
    """Equal, where YAML 1.1 reads 1e-3 as text, and a section in a file may leave out defaults."""
    if isinstance(written, dict):
        return all(_matches(found[key], value) for key, value in written.items())
    return found == written or (isinstance(written, str) and isinstance(found, float) and float(written) == found)


def test_every_file_of_conf_belongs_to_a_group_of_a_verb():
    used = {group for path in (CONF_DIR / "verbs").glob("*.yaml") for group in groups_of(path.stem)}
    assert {path.parent.name for path in CONF_DIR.glob("*/*.yaml")} - {"verbs"} == used


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_every_key_and_choice(verb):
    text = help_text(verb, VERBS[verb].cls)
    assert all(f"{key}: " in text for key in known_keys(VERBS[verb].cls))
    assert all(name in text for group in groups_of(verb) for name in choices(group, verb))
    keys = [line.strip() for line in text.split("keys:\n")[1].splitlines() if line.startswith("  ")]
    assert not [line for line in keys if not re.search(r"(required|= .*?)  +\S|^[\w.]+: [A-Z]", line)]


def test_overrides_win_over_an_experiment():
    base = ["data.shards=x", "experiment=demo"]
    assert settings_of("train", base).data.kind == "cached"
    assert settings_of("train", ["data=shards", *base]).data.kind == "stream"
    assert settings_of("train", ["data.batch_size=7", *base]).data.batch_size == 7
    assert settings_of("train", [*base, "backbone=resnet50"]).backbone.name == "resnet50"
    assert settings_of("train", [*base]).data.batch_size == 128


def test_experiments_build_on_each_other():
    built = settings_of("train", ["experiment=real_cpu_scratch", "data.shards=x"])
    assert (built.text.kind, built.trainer.epochs, built.data.batch_size) == ("scratch", 12, 256)


def test_python_values_compose_as_typed_ones_do():
    typed = ["experiment=demo", "data.shards=x", "optim.lr=0.5", "logger=[csv,tensorboard]", "seed=3"]
    values = {
        "experiment": "demo",
        "data": {"shards": "x"},
        "optim.lr": 0.5,
        "logger": ["csv", "tensorboard"],
        "seed": 3,
    }
    assert settings_of("train", values) == settings_of("train", typed)
    assert settings_of("train", values | {"data": {"preset": "cached", "shards": "x"}}) == settings_of("train", typed)
    benchmark = settings_of("eval", {"model": "m", "benchmark": {"preset": "voc20", "root": "r"}}).benchmark
    assert (benchmark.num_classes, benchmark.root) == (20, "r")
    assert settings_of("train", typed).logger.tensorboard is not None


@pytest.mark.parametrize(
    ("verb", "override", "parts"),
    [
        ("train", "backbone=dinov2_vitb14", ["backbone=dinov2_vitb14 ", "dinov2_vitb14_reg4"]),
        ("train", "experiment=demoo", ["experiment=demoo ", "demo"]),
        ("train", "experiment=trident", ["experiment=trident "]),
        ("train", "logger=[csv,tensorbord]", ["logger=tensorbord", "tensorboard"]),
        ("train", "backbon=resnet50", ["'backbon'"]),
        ("train", "dat.batch_size=3", ["'dat'"]),
        ("train", "data.batchsize=3", ["'data.batchsize'", "data.batch_size"]),
        ("train", "seed", ["'seed'", "key=value"]),
        ("train", "=3", ["'=3'"]),
        ("train", "backbone=null", ["backbone=null"]),
        ("train", "data.batch_size=0", ["data.batch_size=0"]),
        ("train", "trainer.precision=8", ["trainer.precision=8", "32-true"]),
        ("train", "trainer.max_steps=0", ["trainer.max_steps=0", "-1"]),
        ("train", "text.heads=7", ["text.heads=7", "text.width=512"]),
        ("train-masks", "mask_head.depths=[3,0]", ["mask_head.depths=[3,0]"]),
        ("train-masks", "masks.scales=[2,1]", ["masks.scales=[2,1]"]),
        ("eval", "benchmark=voc22", ["benchmark=voc22 ", "voc20"]),
        ("eval", "reedout=both", ["'reedout'"]),
        ("eval", "text_pooling=foo", ["text_pooling=foo", "sentence"]),
        ("eval", "protocol.stride=400", ["protocol.stride=400", "crop_size"]),
        ("eval", "refine.kind=crf", ["refine.kind=crf", "pamr"]),
        ("segment", "background.kind=words", ["background.words", "empty"]),
        ("segment", "refine.iterations=3", ["'refine.iterations'"]),
        ("report", "confidence=95", ["confidence=95"]),
    ],
)
def test_what_does_not_hold_is_one_line(verb, override, parts):
    message = refused(verb, override)
    assert all(part in message for part in parts), message


def test_missing_benchmark_names_the_choices():
    with pytest.raises(ConfigError, match=r"give benchmark=NAME; known: .*voc20"):
        settings_of("eval", ["model=m"])


def test_classes_of_a_benchmark_may_be_a_list():
    settings = settings_of("eval", [*GIVEN["eval"], "benchmark.classes=[dog,cat]", "benchmark.num_classes=2"])
    assert settings.benchmark.classes == ["dog", "cat"]


OLD = [
    ("eval", "readout=concept", "text_pooling", "tokens"),
    ("eval", "inference=splice", "inference", "stitch"),
    ("eval", "correlate=sam", "aggregate.kind", "sam"),
    ("eval", "proxy.shift=2", "proxy.beta", 2.0),
    ("train-masks", "multires=single", "mask_head.views", "global"),
    ("train-masks", "multires.learned_share=0.1", "mask_head.ensemble_alpha", 0.1),
    ("train-masks", "masks.hidden=[cat]", "masks.exclude_classes", ["cat"]),
    ("train-masks", "mask_loss.no_object=0.2", "mask_loss.eos_coef", 0.2),
]


@pytest.mark.parametrize(("verb", "override", "key", "value"), OLD)
def test_old_names_work_with_one_line_of_warning(verb, override, key, value, caplog, tmp_path):
    settings = settings_of(verb, [*GIVEN[verb], override])
    for part in key.split("."):
        settings = getattr(settings, part)
    assert settings == value
    assert [key.partition(".")[0] in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("overrides", "verb"),
    [
        (["experiment=mrovseg_cpu"], "train-masks"),
        (["masks.root=x"], "train-masks"),
        (["multires=single"], "train-masks"),
        (["experiment=demo", "seed=1"], "train"),
        ([], "train"),
    ],
)
def test_train_still_means_training_with_masks_where_its_keys_say_so(overrides, verb):
    assert training_verb(overrides) == verb


# ------------------------------------------------------------------------------------------- files and own presets


def test_a_written_file_runs_again_with_overrides_on_top(tmp_path):
    first = settings_of("train", ["experiment=demo", "data.shards=x", "optim.lr=0.5"])
    save(first, tmp_path / "config.yaml")
    assert settings_of("train", [], tmp_path / "config.yaml") == first
    again = settings_of("train", ["loss=lit", "optim.eps=1", "text.layers=2"], tmp_path / "config.yaml")
    assert again.loss.concept_weight == 0 and again.text.layers == 2
    assert (again.optim.lr, again.optim.eps) == (0.5, 1.0)


def test_a_short_file_takes_defaults_for_the_rest(tmp_path):
    (tmp_path / "mine.yaml").write_text("data: {kind: stream, shards: x}\noptim: {lr: 1e-3}\n")
    assert settings_of("train", [], tmp_path / "mine.yaml").optim.lr == 1e-3
    (tmp_path / "eval.yaml").write_text("model: m\nreadout: concept\nbenchmark: {name: own, root: r}\n")
    settings = settings_of("eval", [], tmp_path / "eval.yaml")
    assert (settings.benchmark.name, settings.text_pooling) == ("own", "tokens")


@pytest.mark.parametrize(
    ("content", "part"),
    [(None, "does not exist"), ("- 1\n", "no keys"), ("a: [", "cannot be read"), ("sed: 1\n", "'sed'")],
)
def test_a_file_that_holds_no_settings(content, part, tmp_path):
    if content is not None:
        (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=part):
        settings_of("train", ["data.shards=x"], tmp_path / "bad.yaml")


@pytest.fixture
def presets(tmp_path) -> Path:
    """A user's folder with a file in several groups."""
    files = {
        "backbone/mine.yaml": "name: mine\ntimm_name: resnet18\n",
        "loss/simzss.yaml": "concept_weight: 7.0\n",
        "benchmark/own.yaml": "name: own\nclasses: [dog, cat]\n",
        "concepts/birds.yaml": "bank: banks/birds.txt\n",
        "banks/birds.txt": "robin\n",
        "experiment/exp.yaml": "# @package _global_\ndefaults: [demo, override /backbone: mine]\noptim: {lr: 0.5}\n",
    }
    for name, text in files.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(text)
    return tmp_path / "own"


def test_own_presets_come_before_ours_in_every_group(presets):
    with user_presets(presets):
        settings = settings_of("train", ["experiment=exp", "data.shards=x", "concepts=birds"])
        assert (settings.backbone.name, settings.loss.concept_weight, settings.optim.lr) == ("mine", 7.0, 0.5)
        assert settings.text.layers == 4  # of our experiment, which theirs builds on
        assert find_file(settings.concepts.bank) == (presets / "banks" / "birds.txt").resolve()
        assert settings_of("eval", ["model=m", "benchmark=own", "benchmark.root=r"]).benchmark.classes == ["dog", "cat"]
        assert {"mine", "resnet50"} <= set(choices("backbone"))
    assert "mine" not in choices("backbone")
    assert settings_of("train", ["data.shards=x"]).loss.concept_weight == 1.0


def test_a_folder_called_conf_is_found_and_named(presets, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    presets.rename(presets.with_name("conf"))
    monkeypatch.chdir(presets.parent)
    with user_presets(None):
        assert "mine" in choices("backbone")
    assert "conf" in caplog.text


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="conf_dir="), user_presets(tmp_path / "none"):
        pass


def test_a_preset_that_is_no_yaml_is_named(presets):
    (presets / "loss" / "broken.yaml").write_text("a: [\n")
    with user_presets(presets), pytest.raises(ConfigError, match=r"broken"):
        compose("train", ["loss=broken"])


def test_find_file_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("words.txt").touch()
    assert find_file("words.txt") == Path("words.txt")
    assert find_file("names/voc20.txt") == CONF_DIR / "names" / "voc20.txt"
    with pytest.raises(ConfigError, match=os.fspath(CONF_DIR)):
        find_file("names/none.txt")


def test_presets_name_no_default_again():
    """A preset holds what differs: defaults stand in the settings classes alone."""
    for group in ("loss", "mask_head", "optim", "trainer", "protocol"):
        cls = VERBS["train-masks" if group == "mask_head" else "train"].cls.model_fields[group].annotation
        for name in choices(group):
            defaults = cls().plain()
            written = yaml.safe_load((CONF_DIR / group / f"{name}.yaml").read_text(encoding="utf-8")) or {}
            assert not [key for key, value in written.items() if defaults[key] == value], (group, name)
