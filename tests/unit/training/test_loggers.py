import csv

import pytest

from simzss.training.loggers import ResumableCSVLogger

pytestmark = pytest.mark.filterwarnings("ignore:Experiment logs directory")

HEADER = "epoch,step,train/loss,val/miou\r\n"
ROWS = [f"{step // 2},{step},0.{step}25,{'' if step % 2 else 'nan'}\r\n" for step in range(6)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def resume(path, step: int) -> ResumableCSVLogger:
    """Put the log back and write one more row by Lightning."""
    logger = ResumableCSVLogger(path.parent, step)
    logger.log_metrics({"train/loss": 0.5, "epoch": 9}, step)
    logger.save()
    return logger


def steps(path) -> list[int]:
    with path.open(newline="", encoding="utf-8") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_earlier_rows_stay_as_they_are(path):
    path.write_bytes((HEADER + "".join(ROWS)).encode())
    resume(path, 4)
    assert path.read_bytes().decode() == HEADER + "".join(ROWS[:4]) + "9,4,0.5,\r\n"


@pytest.mark.parametrize(
    "torn",
    ["2,4,0.4", "2,4", "2,", "2", "2,4,0.425,nan", "\0" * 600, "\0" * 600 + "\r\n", "2,4,0.4,1,1\r\n", "a,b,c,d\r\n"],
)
def test_row_that_a_power_cut_tore_is_left_out(path, torn):
    """`2,4,0.425,nan` without its line end could be the beginning of another number."""
    path.write_bytes((HEADER + "".join(ROWS[:4]) + torn).encode())
    resume(path, 5)
    assert steps(path) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("content", ["", "epo", HEADER, "epoch,train/loss\r\n1,2\r\n", b"\xff\xfe\r\n1\r\n"])
def test_log_without_a_row(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    resume(path, 5)
    assert steps(path) == [5]


def test_log_is_there_whatever_happens_while_rows_are_put_back(path, monkeypatch):
    path.write_bytes((HEADER + "".join(ROWS)).encode())

    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", full)
        with pytest.raises(OSError, match="No space"):
            resume(path, 4)
    assert steps(path) == list(range(6))
    resume(path, 4)
    assert steps(path) == [0, 1, 2, 3, 4]
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.csv"]
