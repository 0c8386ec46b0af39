import pytest

from data_prep.captions.settings import CaptionsSettings, FilterSettings, RaySettings, SourceSettings
from simzss.errors import ConfigError
from simzss.settings.compose import choices, load_choice
from simzss.settings.program import parse


def refused(cls, values, *parts):
    with pytest.raises(ConfigError) as caught:
        cls.of(values)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", choices("filters"))
def test_shipped_filters_are_valid(name):
    FilterSettings.of(load_choice("filters", name))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_words", 0),
        ("min_words", 1.5),
        ("max_words", -1),
        ("max_characters", 0),
        ("max_characters", 1_000_001),
        ("max_characters", None),
        ("languages", []),
        ("languages", ["xx"]),
        ("languages", [""]),
        ("language_confidence", 1.1),
        ("without_concepts", "maybe"),
        ("min_side", 0),
        ("max_aspect", 0.9),
        ("max_megapixels", 0),
        ("max_megapixels", 90),
        ("exact_duplicates", "remove"),
        ("near_duplicates", 17),
        ("near_duplicates", -1),
        ("evaluation_root", ""),
        ("evaluation_distance", None),
    ],
)
def test_filter_values_that_cannot_be(key, value):
    refused(FilterSettings, {key: value}, key)


def test_limits_that_exclude_one_another():
    refused(FilterSettings, {"min_words": 5, "max_words": 3}, "max_words=3", "min_words=5")


@pytest.mark.parametrize(
    ("given", "layout"),
    [
        ({"images": "a", "captions": "b"}, "coco"),
        ({"shards": "a"}, "img2dataset"),
        ({"table": "a"}, "table"),
        ({"images": "a", "table": "b"}, "table"),
        ({"dataset": "a"}, "dataset"),
        ({"dataset": "a", "dataset_split": "b"}, "dataset"),
    ],
)
def test_layout(given, layout):
    assert SourceSettings(**given).layout == layout


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({}, "give either images=DIR captions=FILE, or shards=PATTERN"),
        ({"images": "a"}, "either"),
        ({"captions": "a"}, "either"),
        ({"images": "a", "captions": "b", "shards": "c"}, "either"),
        ({"images": "a", "captions": "b", "table": "c"}, "either"),
        ({"images": "a", "shards": "c"}, "either"),
        ({"images": "a", "dataset": "c"}, "either"),
        ({"shards": "a", "table": "b"}, "either"),
        ({"table": "a", "dataset": "b"}, "either"),
        ({"table": "a", "samples_per_shard": 0}, "samples_per_shard=0"),
        ({"table": "a", "broken_tars": "skip"}, "broken_tars=skip"),
        ({"table": "a", "dataset_split": "train"}, "dataset_split=train needs dataset=DIR"),
    ],
)
def test_sources_that_cannot_be(given, part):
    refused(SourceSettings, given, part)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["changed=maybe"], "changed=maybe"),
        (["parse_batch=0"], "parse_batch=0"),
        (["shard_megabytes=0"], "shard_megabytes=0"),
        (["shard_megabytes=nan"], "shard_megabytes=nan"),
        (["filters.min_words=many"], "filters.min_words=many"),
        (["executor.processes=0"], "executor.processes=0"),
        (["executor=serial", "executor.processes=2"], "executor.processes"),
        (["executor=ray", "executor.cpus=0"], "executor.cpus=0"),
        (["executor=ray", "executor.gpus=-1"], "executor.gpus=-1"),
        (["executor.kind=serail"], "executor.kind=serail"),
        (["executor=slurm"], "executor=slurm is unknown"),
        (["filters.minwords=3"], "did you mean filters.min_words"),
        (["image=y"], "unknown key 'image'; did you mean images"),
    ],
)
def test_bad_arguments(arguments, part):
    with pytest.raises(ConfigError) as caught:
        parse(CaptionsSettings, ["table=t.csv", "output=x", *arguments], "captions")
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_arguments():
    settings = parse(
        CaptionsSettings,
        ["shards={00..09}.tar", "output=2024_01_01", "executor=ray", "executor.gpus=0.5", "filters=web",
         "filters.min_words=null", "filters.evaluation_root=[a,b]"],
        "captions",
    )  # fmt: skip
    assert settings.shards == "{00..09}.tar" and str(settings.output) == "2024_01_01"
    assert settings.executor == RaySettings(gpus=0.5)
    assert settings.filters.min_words is None and settings.filters.languages == ["en"]
    assert list(map(str, settings.filters.evaluation_roots)) == ["a", "b"]


def test_no_output():
    with pytest.raises(ConfigError, match="output"):
        parse(CaptionsSettings, ["table=t.csv"], "captions")


def test_every_filter_of_web_can_be_switched_off():
    keys = ("min_words", "max_words", "languages", "min_side", "max_aspect", "near_duplicates")
    arguments = ["table=t.csv", "output=x", "filters=web", *(f"filters.{key}=null" for key in keys)]
    filters = parse(CaptionsSettings, arguments, "captions").filters
    assert {getattr(filters, key) for key in keys} == {None}


def test_help_names_every_key(capsys):
    with pytest.raises(SystemExit):
        parse(CaptionsSettings, ["--help"], "captions")
    printed = capsys.readouterr().out
    assert all(key in printed for key in ("filters.min_words: integer | null", "executor.processes", "changed: refuse"))
