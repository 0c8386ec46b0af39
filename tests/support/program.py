"""Run a program's `main` inside the test process as its console script would."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from simzss.program import run_program

ROOT = Path(__file__).resolve().parents[2]


def exit_code(main: Callable[[], None], arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of `main` with these arguments; anything but a planned exit is raised."""
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    try:
        run_program(main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0
