"""The HTML report: self-contained, escaped, complete."""

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simzss.reports.report import Curve, Overlay, Report, write_report
from simzss.reports.tables import protocols
from tests.unit.reports.pages import Page


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
    Page(written).assert_self_contained()


def test_links_lead_to_sections(written):
    page = Page(written)
    targets = {attributes["href"].removeprefix("#") for attributes in page.all("a")}
    assert targets == {"scores", "classes", "training", "pictures", "protocol", "notes"}
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert targets == set(identifiers) and len(identifiers) == len(targets)


def test_user_text_is_escaped(written):
    assert "&lt;b&gt;" in written and "<b></b>" not in written and "<script" not in written
    text = Page(written).text
    assert "A run & its <scores>" in text and "<script>alert(1)</script>" in text and "well <done>" in text


def test_headline_table_gives_the_numbers(written):
    cells = Page(written).cells
    start = cells.index("voc20")
    assert cells[start : start + 6] == ["voc20", "77.1", "7.0", "11.0 ×", "80.3", "1,449"]
    start = cells.index("scenes")
    assert cells[start : start + 6] == ["scenes", "21.0", "–", "–", "–", "7"]
    assert "voc20_untrained" not in cells  # it has no row of its own
    assert "voc20 against voc20_untrained" in Page(written).text


def test_class_bars_are_sorted_and_carry_the_baseline(written):
    section = written[written.index('id="classes"') : written.index('id="training"')]
    assert re.findall(r'class="name">([^<]*)<', section) == ["&lt;b&gt;", "dog", "sky"]
    assert re.findall(r'<b style="width:([\d.]+)%"', section) == ["88.0", "61.5", "9.9"]
    assert re.findall(r'<i style="width:([\d.]+)%"', section) == ["12.3"]
    assert "without a score: cow, car" in section


def test_protocol_is_flattened_and_shared(written):
    cells = Page(written).cells
    rows = dict(zip(cells[-8::2], cells[-7::2], strict=True))
    assert rows == {
        "resize.short_side": "448",
        "resize.keep": "yes",
        "templates": "a photo of a {}.",
        "refine": "–",
    }
    assert written.count("<summary>voc20, scenes</summary>") == 1


def test_lists_in_the_protocol_stay_readable():
    flat = dict(
        protocols(
            {"r": {"protocol": {"size": [448, 448], "phrases": ["a b, c", "d"], "none": [], "deep": [{"x": 1}]}}}
        )[0].rows
    )
    assert flat == {"size": "448, 448", "phrases": "a b, c\nd", "none": "–", "deep": '[{"x": 1}]'}


def test_overlays_are_inlined(written):
    images = Page(written).all("img")
    assert [image["alt"] for image in images] == ["2007_000032", "wide", "see-through"]
    kinds, pictures = [], []
    for image in images:
        head, data = image["src"].split(",", 1)
        kinds.append(head)
        pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
    assert kinds == ["data:image/jpeg;base64", "data:image/jpeg;base64", "data:image/png;base64"]
    assert [picture.size for picture in pictures] == [(40, 30), (1600, 400), (40, 30)]
    np.testing.assert_allclose(np.asarray(pictures[0])[15, 20], (200, 30, 40), atol=4)
    assert len(Page(written).of_class("wide")) == 1


def test_empty_report_is_a_page(tmp_path):
    write_report(tmp_path / "r.html", Report("Nothing yet"))
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Nothing yet" in page.text
    assert not page.all("section") and not page.all("a")


def test_odd_names_do_not_cost_the_report(tmp_path):
    results = {"voc": {"mIoU": 1.0, "aAcc": 2.0, "images": 3, "per_class": {"猫": 1.0, "\ud800": 2.0}}}
    write_report(tmp_path / "r.html", Report("ü", results=results))
    assert "猫" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_import_loads_no_heavy_package():
    code = (
        "import sys, simzss.reports.report; print([n for n in ('matplotlib', 'torch', 'pandas') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -------------------------------------------------------------------------------------------------- charts


def test_chart_is_drawn_to_scale(written):
    page = Page(written)
    (line,) = page.all("polyline")
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert (y1 - y0) / (y2 - y1) == pytest.approx(2.25 / 0.75, abs=0.02)  # downwards as the loss falls
    assert len(page.all("circle")) == 3
    assert "train/loss, step 100: 1.25" in page.text


def test_chart_refuses_lists_of_different_length(tmp_path):
    with pytest.raises(ValueError, match=r"'Loss'.*'a'.*2 x values but 1 y"):
        write_report(tmp_path / "r.html", Report("t", curves=[Curve("Loss", "step", {"a": ([1, 2], [1])})]))
