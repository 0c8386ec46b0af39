"""The HTML report: self-contained, escaped, complete; and the reading of training curves."""

import base64
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simzss.evaluation import report as module
from simzss.evaluation.report import Curve, Overlay, Report, curves_from_csv, write_report

VOID = {"meta", "br", "img"}


class _Page(HTMLParser):
    """Collects what the tests look at and checks that the tags nest."""

    def __init__(self, html: str):
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" in self.stack:
            return
        self.text += data
        if self.stack and self.cells and {"td", "th"} & set(self.stack):
            self.cells[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def of_class(self, name):
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def _full_report() -> Report:
    protocol = {"resize": {"short_side": 448, "keep": True}, "templates": ["a photo of a {}."], "refine": None}
    return Report(
        title="A run & its <scores>",
        summary=[("Backbone", "efficientnet_lite0"), ("Date", "2025-01-31")],
        results={
            "voc20": {
                "mIoU": 77.14,
                "aAcc": 80.26,
                "images": 1449,
                "per_class": {"dog": 61.5, "<b>": 88.04, "cow": None, "car": float("nan")},
                "protocol": protocol,
            },
            "scenes": {"mIoU": 21.0, "aAcc": None, "images": 7, "per_class": {"sky": 9.9}, "protocol": protocol},
            "voc20_untrained": {"mIoU": 7.0, "aAcc": 11.0, "images": 1449, "per_class": {"<b>": 12.34}},
        },
        baselines={"voc20": "voc20_untrained", "scenes": "no such result"},
        curves=[Curve("Loss", "step", {"train/loss": ([0, 100, 200], [3.5, 1.25, 0.5])})],
        overlays=[
            Overlay("voc20", "2007_000032", Image.new("RGB", (40, 30), (200, 30, 40)), "well <done>"),
            Overlay("voc20", "wide", Image.new("P", (2000, 500))),
            Overlay("scenes", "see-through", Image.new("RGBA", (40, 30), (0, 0, 0, 0))),
        ],
        notes=["See https://example.org for more.", "<script>alert(1)</script>"],
    )


@pytest.fixture
def written(tmp_path: Path) -> str:
    path = tmp_path / "deep" / "report.html"
    write_report(path, _full_report())
    return path.read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- page


def test_page_loads_nothing_from_elsewhere(written):
    page = _Page(written)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "xlink:href", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/", "#")), target
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    style = written[written.index("<style>") : written.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in written


def test_links_lead_to_sections(written):
    page = _Page(written)
    targets = {attributes["href"].removeprefix("#") for attributes in page.all("a")}
    assert targets == {"scores", "classes", "training", "pictures", "protocol", "notes"}
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert targets == set(identifiers) and len(identifiers) == len(targets)


def test_user_text_is_escaped(written):
    assert "&lt;b&gt;" in written and "<b></b>" not in written and "<script" not in written
    text = _Page(written).text
    assert "A run & its <scores>" in text and "<script>alert(1)</script>" in text and "well <done>" in text


def test_headline_table_gives_the_numbers(written):
    cells = _Page(written).cells
    start = cells.index("voc20")
    assert cells[start : start + 6] == ["voc20", "77.1", "7.0", "11.0 ×", "80.3", "1,449"]
    start = cells.index("scenes")
    assert cells[start : start + 6] == ["scenes", "21.0", "–", "–", "–", "7"]
    assert "voc20_untrained" not in cells  # it has no row of its own
    assert "voc20 against voc20_untrained" in _Page(written).text


def test_table_has_no_baseline_columns_without_baselines(tmp_path):
    write_report(tmp_path / "r.html", Report("t", results={"voc20": {"mIoU": 50.0, "aAcc": 60.0, "images": 3}}))
    page = _Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.cells == ["Benchmark", "mIoU", "Pixelaccuracy", "Images", "voc20", "50.0", "60.0", "3"]


def test_class_bars_are_sorted_and_carry_the_baseline(written):
    section = written[written.index('id="classes"') : written.index('id="training"')]
    assert re.findall(r'class="name">([^<]*)<', section) == ["&lt;b&gt;", "dog", "sky"]
    assert re.findall(r'<b style="width:([\d.]+)%"', section) == ["88.0", "61.5", "9.9"]
    assert re.findall(r'<i style="width:([\d.]+)%"', section) == ["12.3"]
    assert "without a score: cow, car" in section


def test_bars_stay_inside_their_track():
    assert module._bar("x", 120.0, -3.0)["width"] == "100.0"
    assert module._bar("x", 120.0, -3.0)["base_width"] == "0.0"


def test_baseline_of_zero_gives_no_factor():
    results = {"a": {"mIoU": 5.0}, "b": {"mIoU": 0.0}}
    assert module._headline("a", Report("t", results=results, baselines={"a": "b"}))["factor"] == "–"


def test_protocol_is_flattened_and_shared(written):
    cells = _Page(written).cells
    rows = dict(zip(cells[-8::2], cells[-7::2], strict=True))
    assert rows == {
        "resize.short_side": "448",
        "resize.keep": "yes",
        "templates": "a photo of a {}.",
        "refine": "–",
    }
    assert written.count("<summary>voc20, scenes</summary>") == 1


def test_lists_in_the_protocol_stay_readable():
    flat = dict(module._flattened({"size": [448, 448], "phrases": ["a b, c", "d"], "none": [], "deep": [{"x": 1}]}))
    assert flat == {"size": "448, 448", "phrases": "a b, c\nd", "none": "–", "deep": '[{"x": 1}]'}


def test_overlays_are_inlined(written):
    images = _Page(written).all("img")
    assert [image["alt"] for image in images] == ["2007_000032", "wide", "see-through"]
    kinds, pictures = [], []
    for image in images:
        head, data = image["src"].split(",", 1)
        kinds.append(head)
        pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
    assert kinds == ["data:image/jpeg;base64", "data:image/jpeg;base64", "data:image/png;base64"]
    assert [picture.size for picture in pictures] == [(40, 30), (1600, 400), (40, 30)]
    np.testing.assert_allclose(np.asarray(pictures[0])[15, 20], (200, 30, 40), atol=4)
    assert len(_Page(written).of_class("wide")) == 1


def test_empty_report_is_a_page(tmp_path):
    write_report(tmp_path / "r.html", Report("Nothing yet"))
    page = _Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Nothing yet" in page.text
    assert not page.all("section") and not page.all("a")


def test_odd_names_do_not_cost_the_report(tmp_path):
    results = {"voc": {"mIoU": 1.0, "aAcc": 2.0, "images": 3, "per_class": {"猫": 1.0, "\ud800": 2.0}}}
    write_report(tmp_path / "r.html", Report("ü", results=results))
    assert "猫" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_import_loads_no_heavy_package():
    code = (
        "import sys, types; import importlib.util as u;"
        f"s = u.spec_from_file_location('report', {module.__file__!r}); m = u.module_from_spec(s);"
        "sys.modules['report'] = m; s.loader.exec_module(m);"
        "print([n for n in ('matplotlib', 'torch', 'pandas') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -------------------------------------------------------------------------------------------------- charts


def test_chart_is_drawn_to_scale(written):
    page = _Page(written)
    (line,) = page.all("polyline")
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert (y1 - y0) / (y2 - y1) == pytest.approx(2.25 / 0.75, abs=0.02)  # downwards as the loss falls
    assert len(page.all("circle")) == 3
    assert "train/loss, step 100: 1.25" in page.text


def test_all_points_lie_inside_the_drawing():
    rng = np.random.default_rng(0)
    for scale in (1e-6, 1.0, 1e7):
        values = (rng.normal(size=50) * scale).tolist()
        chart = module._chart(Curve("c", "step", {"a": (list(range(50)), values)}))
        left, top, right, bottom = chart["frame"]
        points = [tuple(map(float, point.split(","))) for point in chart["lines"][0]["points"].split()]
        assert all(left <= x <= right and top <= y <= bottom for x, y in points)
        assert 4 <= len(chart["y_ticks"]) <= 7


def test_long_lines_are_averaged():
    x = [float(i) for i in range(10_000)]
    chart = module._chart(Curve("c", "step", {"a": (x, x)}))
    assert chart["averaged"] and len(chart["lines"][0]["points"].split()) <= module._MAX_POINTS
    assert chart["lines"][0]["last"] == "9,999"  # of the line itself, not of an average


def test_charts_survive_little_data():
    assert module._chart(Curve("c", "step", {})) is None
    assert module._chart(Curve("c", "step", {"a": ([], []), "b": ([1.0], [math.nan])})) is None
    single = module._chart(Curve("c", "step", {"a": ([5.0], [0.25]), "b": ([], [])}))
    assert [line["name"] for line in single["lines"]] == ["a"] and len(single["lines"][0]["dots"]) == 1
    assert module._chart(Curve("c", "step", {"a": ([1.0, 2.0], [0.0, 0.0])})) is not None


def test_chart_refuses_lists_of_different_length(tmp_path):
    with pytest.raises(ValueError, match=r"'Loss'.*'a'.*2 x values but 1 y"):
        write_report(tmp_path / "r.html", Report("t", curves=[Curve("Loss", "step", {"a": ([1, 2], [1])})]))


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
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    assert curves_from_csv(path) == []


def test_missing_csv_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError):
        curves_from_csv(tmp_path / "metrics.csv")


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
