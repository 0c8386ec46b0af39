"""Leakage control: a bank without the classes of the sets that it will be measured on."""

from collections.abc import Sequence

from simzss.concepts.bank import read_entries
from simzss.config import find_file, load_choice
from simzss.errors import InputError


def excluded_words(benchmarks: Sequence[str]) -> list[str]:
    """Class names and their synonyms of named benchmarks, for leakage control of a concept bank.

    Raises:
        InputError: unknown benchmark, or one whose class list comes with its data.
    """
    words: list[str] = []
    for name in benchmarks:
        classes = str(load_choice("benchmark", name)["classes"])
        if classes.startswith("./"):
            raise InputError(f"the classes of benchmark {name} come with its data and cannot be excluded by name")
        words += [word for entry in read_entries(find_file(classes)) for word in entry.words]
    return words
