"""Measure or propose a concept bank: arguments to settings, and the two ways to go on."""

from simzss.concepts.bank import ConceptBank
from simzss.concepts.leakage import excluded_words
from simzss.errors import DataError
from simzss.settings.compose import find_file
from simzss.settings.program import parse

from .settings import BankSettings


def main(arguments: list[str] | None = None) -> None:
    """Read arguments (default: of the command line), measure or propose, print."""
    settings = parse(BankSettings, arguments)
    if settings.propose is not None:
        from .propose import propose  # libraries that a coverage does without

        propose(settings)
    else:
        _cover(settings)


def _cover(settings: BankSettings) -> None:
    from .coverage import measure, open_shards, print_report, write_json

    path = find_file(settings.bank, "bank")
    bank = ConceptBank.from_file(path, excluded_words(settings.exclude), settings.surface_forms)
    coverage, skipped = measure(open_shards(settings.captions), bank)
    if coverage.captions == 0:
        raise DataError(f"captions={settings.captions} holds no annotated caption")
    print_report(coverage, settings.top)
    if skipped:
        print(f"skipped {skipped} unreadable samples")
    if settings.output is not None:
        write_json(coverage, settings.output)
