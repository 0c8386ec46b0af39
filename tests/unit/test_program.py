"""How programs end, and the lists of sums beside files."""

import errno
import signal
import sys

import pytest

from simzss.checksums import changed_files, write_sums
from simzss.errors import DataError, printable
from simzss.program import Interrupted, interruptible, run_program, system_failure


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


ENDS = {
    "input": (DataError("a\nb"), 2, "error: a b"),
    "escape": (DataError("name \x1b[31m"), 2, "error: name \\x1b[31m"),
    "disk full": (
        OSError(errno.ENOSPC, "No space left on device", "x.ckpt"),
        1,
        "error: x.ckpt: No space left on device",
    ),
    "in a library": (chained(RuntimeError("?"), OSError(errno.EROFS, "Read-only")), 1, "error: Read-only"),
    "memory": (MemoryError(), 1, "error: not enough memory: an allocation failed"),
    "threads": (RuntimeError("can't start new thread"), 1, "error: not enough memory: can't start new thread"),
    "worker": (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        1,
        "error: a worker process was",
    ),
    "interrupt": (KeyboardInterrupt(), 130, "interrupted\n"),
    "hint": (Interrupted("the same command goes on"), 130, "interrupted: the same command goes on\n"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_each_end_is_one_line(kind, capsys):
    error, code, line = ENDS[kind]

    def main():
        raise error

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        run_program(main)
    signal.signal(signal.SIGINT, before)
    assert end.value.code == code
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: print(1 / 0))
    assert system_failure(KeyError("x")) is None
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_hint_of_an_interrupt():
    with pytest.raises(Interrupted, match="outer") as caught, interruptible("outer"):
        raise KeyboardInterrupt
    with pytest.raises(Interrupted, match="outer"), interruptible("later"):
        raise caught.value


@pytest.mark.parametrize(
    ("text", "shown"), [("plain é 猫", "plain é 猫"), ("a\u202eb", "a\\u202eb"), ("\ud800", "\\ud800"), ("a\tb", "a b")]
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_sums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "sub").mkdir()
    files = [tmp_path / "a", tmp_path / "sub" / "b"]
    for file in files:
        file.write_bytes(file.name.encode())
    sums = tmp_path / "SHA256SUMS"
    write_sums(sums, files)
    a = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"  # of "a", by FIPS 180-4's test programs
    assert sums.read_text().splitlines()[0] == f"{a}  a" and changed_files(sums) == []
    files[1].write_bytes(b"other")
    assert changed_files(sums) == ["sub/b"]
    files[0].unlink()
    sums.write_text(sums.read_text() + f"{a}  ../a\n{a}  {sys.executable}\n")
    assert changed_files(sums) == ["a", "sub/b", "../a", sys.executable]
    sums.write_text("no sums\n")
    with pytest.raises(ValueError, match="no list"):
        changed_files(sums)
