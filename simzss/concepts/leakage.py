"""Leakage control: a bank without the classes of the sets that it will be measured on."""

from collections.abc import Sequence

from simzss.concepts.bank import read_entries
from simzss.errors import ConfigError
from simzss.settings.compose import find_file, load_choice


def excluded_words(benchmarks: Sequence[str]) -> list[str]:
    """Return class names and their synonyms of named benchmarks, to be excluded from a concept bank.

    Raises:
        ConfigError: unknown benchmark, or one whose class list comes with its data or that has none.
    """
    words: list[str] = []
    for name in benchmarks:
        classes = load_choice("benchmark", name).get("classes")
        if not isinstance(classes, str):
            raise ConfigError(f"benchmark {name} has no list of classes to exclude")
        if classes.startswith("./"):
            raise ConfigError(f"the classes of benchmark {name} come with its data and cannot be excluded by name")
        words += [word for entry in read_entries(find_file(classes)) for word in entry.words]
    return words
