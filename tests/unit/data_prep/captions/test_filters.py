import sys

import pytest

from data_prep.captions.filters import caption_reason, image_reason
from data_prep.captions.languages import language_identifier
from data_prep.captions.settings import FilterSettings
from simzss.errors import ConfigError

GERMAN = "ein Hund läuft über die grüne Wiese im Park"


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
        ({"languages": ["en"]}, GERMAN, "language other than en"),
        ({"languages": ["en", "de"]}, GERMAN, None),
        ({"languages": "fr"}, "un chien court sur l'herbe verte dans le parc", None),
        ({"languages": ["en"]}, "一只狗在公园的草地上奔跑", "language other than en"),
    ],
)
def test_captions(changes, text, reason):
    assert caption_reason(text, FilterSettings(**changes)) == reason


def test_language_goes_only_when_it_is_sure():
    language, probability = language_identifier().classify("ein Hund")
    assert language == "de" and 0 < probability < 1
    sure, unsure = (FilterSettings(languages=["en"], language_confidence=x) for x in (float(probability) - 1e-6, 1.0))
    assert caption_reason("ein Hund", sure) is not None
    assert caption_reason("ein Hund", unsure) is None


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
    assert image_reason(size, FilterSettings(**changes)) == reason


def test_missing_package_is_one_line(monkeypatch):
    language_identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ConfigError, match=r"py3langid.*pip install 'simzss\[prep\]'"):
        FilterSettings(languages=["en"])
