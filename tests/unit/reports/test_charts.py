"""Training curves: reading the log, laying out the charts."""

import math
from pathlib import Path

import numpy as np
import pytest

from simzss.reports import charts as module
from simzss.reports.charts import Curve, chart, curves_from_csv


def test_all_points_lie_inside_the_drawing():
    rng = np.random.default_rng(0)
    for scale in (1e-6, 1.0, 1e7, 1e307):
        values = (rng.normal(size=50) * scale).tolist()
        drawn = chart(Curve("c", "step", {"a": (list(range(50)), values)}))
        left, top, right, bottom = drawn["frame"]
        points = [tuple(map(float, point.split(","))) for point in drawn["lines"][0]["points"].split()]
        assert all(left <= x <= right and top <= y <= bottom for x, y in points)
        assert 4 <= len(drawn["y_ticks"]) <= 7


def test_long_lines_are_averaged():
    x = [float(i) for i in range(10_000)]
    drawn = chart(Curve("c", "step", {"a": (x, x)}))
    assert drawn["averaged"] and len(drawn["lines"][0]["points"].split()) <= module._MAX_POINTS
    assert drawn["lines"][0]["last"] == "9,999"  # of the line itself, not of an average


def test_charts_survive_little_data():
    assert chart(Curve("c", "step", {})) is None
    assert chart(Curve("c", "step", {"a": ([], []), "b": ([1.0], [math.nan])})) is None
    single = chart(Curve("c", "step", {"a": ([5.0], [0.25]), "b": ([], [])}))
    assert [line["name"] for line in single["lines"]] == ["a"] and len(single["lines"][0]["dots"]) == 1
    assert chart(Curve("c", "step", {"a": ([1.0, 2.0], [0.0, 0.0])})) is not None


@pytest.mark.parametrize("values", [[1e308, -1e308], [1e308, 1e308], [5e-324, 0], [1e17, 1e17], [-1e308] * 600 + [1]])
def test_any_numbers_can_be_drawn(values):
    for x, y in ((values, values), (list(range(len(values))), values), (values, [1.0] * len(values))):
        drawn = chart(Curve("c", "step", {"a": (x, y)}))
        assert "nan" not in str(drawn) and "inf" not in str(drawn)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 8], ["0", "2", "4", "6", "8"]),
        ([0.3, 0.9], ["0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([0, 1e-3], ["0", "2.5e-4", "5e-4", "7.5e-4", "1e-3"]),
        ([0, 40_000], ["0", "10k", "20k", "30k", "40k"]),
        ([10_000, 11_000], ["10k", "10.25k", "10.5k", "10.75k", "11k"]),
        ([-1, 1], ["-1.0", "-0.5", "0", "0.5", "1.0"]),
        ([3, 3], ["3"]),
    ],
)
def test_ticks_are_round(values, labels):
    assert [label for _, label in module._ticks(values)] == labels


# ----------------------------------------------------------------------------------------------------- csv

METRICS = """\
epoch,lr,step,train/loss,train/loss_concept,train/loss_contrastive,train/scale,val/miou/scenes,val/miou/voc20,val/aacc/voc20
0,,9,5.5,3.0,2.5,,,,
0,0.001,10,,,,14.0,,,
0,,19,4.5,,2.0,,,,
0,,19,,,,,20.5,50.25,60.0
1,0.0005,30,,,,15.0,,,
1,,29,nan,1.0,inf,,,,
1,,39,,,,,,61.75,
"""


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS, encoding="utf-8")
    return path


def test_csv_with_gaps_is_read_right(metrics):
    curves = {curve.title: curve for curve in curves_from_csv(metrics)}
    assert curves["Loss"].series == {
        "train/loss": ([9, 19], [5.5, 4.5]),
        "train/loss_concept": ([9, 29], [3.0, 1.0]),
        "train/loss_contrastive": ([9, 19], [2.5, 2.0]),
    }
    assert curves["Validation mIoU (%)"].series == {"scenes": ([19], [20.5]), "voc20": ([19, 39], [50.25, 61.75])}
    assert curves["Learning rate"].series == {"lr": ([10, 30], [0.001, 0.0005])}
    assert curves["train/scale"].series == {"train/scale": ([10, 30], [14.0, 15.0])}
    assert curves["val/aacc"].series == {"voc20": ([19], [60.0])}
    assert {curve.x_label for curve in curves.values()} == {"step"}


def test_csv_charts_come_in_order(metrics):
    titles = [curve.title for curve in curves_from_csv(metrics)]
    assert titles == ["Loss", "Validation mIoU (%)", "Learning rate", "train/scale", "val/aacc"]


def test_csv_of_a_resumed_run_is_sorted(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\n10,3\n20,2\n10,2.5\n30,1\n")
    assert curves_from_csv(path)[0].series["train/loss"] == ([10, 10, 20, 30], [3, 2.5, 2, 1])


def test_csv_without_step_counts_epochs_or_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,train/loss\n0,3\n1,2\n")
    assert curves_from_csv(path) == [Curve("Loss", "epoch", {"train/loss": ([0, 1], [3, 2])})]
    path.write_text("train/loss\n3\n2\n")
    assert curves_from_csv(path) == [Curve("Loss", "row", {"train/loss": ([0, 1], [3, 2])})]


@pytest.mark.parametrize("content", ["", "epoch,step,train/loss\n", "epoch,step,train/loss\n0,1\n0,2,x,surplus\n"])
def test_csv_without_values_gives_no_charts(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    assert curves_from_csv(tmp_path / "metrics.csv") == []


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("train/loss_step", "Loss"),
        ("val/contrastive_loss", "Loss"),
        ("lr-AdamW", "Learning rate"),
        ("train/lr", "Learning rate"),
        ("lr-AdamW/pg1", "Learning rate"),
        ("val/miou", "Validation mIoU (%)"),
        ("train/glossary", "train/glossary"),
    ],
)
def test_columns_are_placed_by_name(name, title):
    assert module._placed(name)[1] == title
