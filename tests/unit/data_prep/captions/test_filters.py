import sys

import pytest

from data_prep.captions.filters import Filters, caption_reason, image_reason, language_identifier
from simzss.config import load_choice, to_plain
from simzss.errors import InputError


def filters(**changes):
    return Filters(**to_plain(load_choice("filters", "none")) | changes)


@pytest.mark.parametrize("name", ["none", "web"])
def test_shipped_choices_are_valid(name):
    assert Filters(**to_plain(load_choice("filters", name)))


@pytest.mark.parametrize(
    ("changes", "text", "reason"),
    [
        ({}, "", None),
        ({}, "x" * 10_000, None),
        ({}, "x" * 10_001, "more than 10000 characters"),
        ({"max_characters": 5}, "abcdef", "more than 5 characters"),
        ({"min_words": 3}, "a dog", "fewer than 3 words"),
        ({"min_words": 3}, " a  big\tdog\n", None),
        ({"max_words": 3}, "a very big dog", "more than 3 words"),
        ({"max_words": 4}, "a very big dog", None),
        ({"languages": ["en"]}, "a dog is running over the green grass in the park", None),
        ({"languages": ["en"]}, "ein Hund läuft über die grüne Wiese im Park", "language other than en"),
        ({"languages": ["en", "de"]}, "ein Hund läuft über die grüne Wiese im Park", None),
        ({"languages": "fr"}, "un chien court sur l'herbe verte dans le parc", None),
        ({"languages": ["en"]}, "一只狗在公园的草地上奔跑", "language other than en"),
    ],
)
def test_captions(changes, text, reason):
    assert caption_reason(text, filters(**changes)) == reason


def test_language_goes_only_when_it_is_sure():
    text = "ein Hund"
    language, probability = language_identifier().classify(text)
    assert language == "de" and 0 < probability <= 1
    assert caption_reason(text, filters(languages=["en"], language_confidence=float(probability) - 1e-6)) is not None
    if probability < 1:
        assert caption_reason(text, filters(languages=["en"], language_confidence=1.0)) is None


@pytest.mark.parametrize(
    ("changes", "size", "reason"),
    [
        ({}, (1, 1), None),
        ({}, (10_000, 8_900), None),
        ({}, (10_000, 8_901), "more than 89 megapixels"),
        ({"max_megapixels": 0.5}, (1000, 501), "more than 0.5 megapixels"),
        ({"min_side": 128}, (127, 1000), "short side below 128 pixels"),
        ({"min_side": 128}, (1000, 127), "short side below 128 pixels"),
        ({"min_side": 128}, (128, 1000), None),
        ({"max_aspect": 2.5}, (100, 250), None),
        ({"max_aspect": 2.5}, (251, 100), "long side more than 2.5 times the short side"),
    ],
)
def test_images(changes, size, reason):
    assert image_reason(size, filters(**changes)) == reason


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
        ("without_concepts", "yes"),
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
def test_values_that_cannot_be(key, value):
    with pytest.raises(InputError) as caught:
        filters(**{key: value})
    assert f"filters.{key}" in str(caught.value) and "\n" not in str(caught.value)


def test_limits_that_exclude_one_another():
    with pytest.raises(InputError, match=r"filters\.min_words=5 is above filters\.max_words=3"):
        filters(min_words=5, max_words=3)


def test_missing_package_is_one_line(monkeypatch):
    language_identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    try:
        with pytest.raises(InputError, match="py3langid"):
            filters(languages=["en"])
    finally:
        language_identifier.cache_clear()
