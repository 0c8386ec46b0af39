"""A share of each kind of fault; `make faults` injects them all."""

import pytest

from tests.faults.campaign import draw, inject, table
from tests.faults.kinds import SURVIVED, Fault, Verdict, judged
from tests.faults.process import Child, Ended, program


def one_of_each():
    """One fault of each kind, each kind on another target."""
    kinds: dict[str, list[Fault]] = {}
    for fault in draw(0):
        kinds.setdefault(fault.kind, []).append(fault)
    return [faults[number % len(faults)] for number, faults in enumerate(kinds.values())]


def test_a_share_of_each_kind_is_survived(tmp_path):
    faults = one_of_each()
    found = inject(faults, tmp_path)
    assert [fault for fault, _ in found] == faults
    assert [(fault, verdict) for fault, verdict in found if verdict != SURVIVED] == []
    counts = {line.split(" | ")[0]: line.split(" | ")[1:3] for line in table(found).splitlines()[2:]}
    assert counts["| together"] == [str(len(faults))] * 2


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        (Ended(0, "fine", 1), None),
        (Ended(2, "error: no such file\n", 1), None),
        (Ended(-9, "", 1), None),
        (Ended(None, "", 1), "hang"),
        (Ended(1, "Traceback (most recent call last):\n  x\nerror: y", 1), "traceback"),
        (Ended(1, "some words", 1), "traceback"),
        (Ended(-11, "", 1), "traceback"),
    ],
)
def test_what_counts_as_a_fault(ended, fault):
    assert ended.fault == fault


def test_what_does_not_go_on_is_lost(tmp_path, monkeypatch):
    """The judge is not fooled: by other bytes, by a command that ends with an error, by files that are missing."""

    class Copying:
        expected = {"a": "x"}

        def again(self, output):
            return ["--version"]

    verdict = judged(Copying(), tmp_path / "out", tmp_path)
    assert verdict.outcome == "lost" and "['a']" in verdict.reason
    Copying.again = lambda self, output: ["no-such-verb"]
    assert judged(Copying(), tmp_path / "out", tmp_path).outcome == "lost"
    assert judged(Copying(), tmp_path / "out", tmp_path, Ended(None, "", 1)) == Verdict("hang", "")
    Copying.again, Copying.expected = (lambda self, output: ["--version"]), {}
    assert judged(Copying(), tmp_path / "out", tmp_path) == SURVIVED


def test_a_program_that_hangs_is_ended(tmp_path):
    child = Child(program(["--version"], lambda: __import__("time").sleep(60)), tmp_path / "log")
    assert child.wait(patience=0.3).code is None
    assert child.processes() == []
