"""Progress of loops: lines in a log, a bar on a terminal, nothing where nobody looks."""

import logging

import pytest

from simzss import progress as module
from simzss.progress import progress


@pytest.fixture
def lines(caplog, monkeypatch):
    """Return the lines of a log in which each second counts for ten."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def run(amounts, total):
        for amount in progress(amounts, total, "cache", count=lambda item: item):
            now[0] += 4.0 * amount
        return [record.getMessage() for record in caplog.records]

    return run


def test_log_has_a_line_every_ten_seconds(lines, caplog):
    caplog.set_level(logging.INFO)
    found = lines([1, 1, 1, 2, 1], 8)
    assert [line.split(",")[0] for line in found] == ["cache: 3 of 8", "cache: 6 of 8"]
    assert "0.25 images/s" in found[0] and found[0].endswith("left")


def test_unknown_total_has_no_time_left(lines, caplog):
    caplog.set_level(logging.INFO)
    (line,) = lines([3], None)
    assert line.startswith("cache: 3, ") and "left" not in line


def test_short_loop_and_one_that_nobody_looks_at_are_silent(lines, caplog):
    caplog.set_level(logging.WARNING)
    assert lines([5, 5], 10) == []
    caplog.set_level(logging.INFO)
    assert lines([1], 1) == []


def test_terminal_has_a_bar(monkeypatch, capsys, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert list(progress("ab", 2, "segment")) == ["a", "b"]
    assert "segment: 100%" in capsys.readouterr().err and not caplog.records


def test_what_the_bar_shows_is_computed_when_it_is_shown(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "SECONDS", 3600.0)
    with module.Bar(10, "training") as bar:
        assert not bar.due
    monkeypatch.setattr(module, "SECONDS", 0.0)
    with module.Bar(10, "training", initial=4) as bar:
        assert bar.due and bar.n == 4
    assert not module.Bar(10, "training", hidden=True).due
