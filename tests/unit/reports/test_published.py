"""Figures of other systems: the file that comes with the package, and the table beside a run."""

import pytest
import yaml

from simzss.errors import DataError
from simzss.reports.published import (
    Published,
    load_published,
    published_notes,
    published_sources,
    published_table,
)
from simzss.reports.report import Report, write_report
from simzss.settings.compose import choices
from tests.unit.reports.pages import Page

ENTRY = {"system": "S", "setting": "x", "verified": True, "source": "page 1", "miou": {"voc20": 50}}
RUN = {"mIoU": 80.0, "images": 1449, "official_images": 1449}


def test_the_packaged_figures():
    published = load_published()
    names = {name for entry in published for name in entry.miou}
    assert {"voc20", "voc21", "ade20k", "coco_object"} <= names <= set(choices("benchmark"))
    for entry in published:
        assert entry.source and "\n" not in entry.source
        assert entry.word == ("verified" if entry.verified else "unverified")


def published_by(system, setting, verified, source, **miou):
    return Published(system=system, setting=setting, verified=verified, source=source, miou=miou)


@pytest.fixture
def published():
    return (
        published_by("SimZSS", "COCO", False, "a paper", voc20=90.3, ade20k=21.8),
        published_by("Looked up", "web", True, "table 3", voc20=70.0),
        published_by("Elsewhere", "web", True, "table 9", cityscapes=1.0),
    )


def test_table_beside_a_run(published):
    results = {"scenes": RUN, "voc20": RUN, "ade20k": RUN | {"mIoU": 20.04, "images": 100, "official_images": 2000}}
    table = published_table(results, published)
    assert table.columns == (
        "Benchmark",
        "This run",
        "Images\nmeasured",
        "SimZSS\nCOCO\nunverified",
        "Looked up\nweb\nverified",
    )
    assert table.rows == (
        ("voc20", "80.0", "1,449 of 1,449", "90.3", "70.0"),
        ("ade20k", "20.0", "100 of 2,000,\nnot comparable", "21.8", "–"),
    )
    (note,) = published_notes(results, published)
    assert note.startswith("ade20k: this run measured 100 of 2,000 images") and "not comparable" in note
    assert published_sources(results, published) == [
        "SimZSS, COCO (unverified): a paper",
        "Looked up, web (verified): table 3",
    ]


def test_engineered_names_have_a_column(published):
    table = published_table({"voc20": RUN | {"engineered": {"mIoU": 81.0}}, "ade20k": RUN}, published)
    assert table.columns[1:3] == ("This run,\nplain names", "This run,\nengineered names")
    assert [row[1:3] for row in table.rows] == [("80.0", "81.0"), ("80.0", "–")]


def test_unknown_size_of_the_official_set_is_said(published):
    (note,) = published_notes({"voc20": {"mIoU": 80.0, "images": 5}}, published)
    assert "not recorded" in note


@pytest.mark.parametrize(
    "results",
    [
        {},
        {"scenes": RUN},
        {"voc20": {"missing": "no folder"}},
        {"voc20": {"mIoU": None}},
        {"voc20": {"kind": "classification", "top1": 3.0}},
    ],
)
def test_nothing_to_compare(results, published):
    assert published_table(results, published) is None
    assert published_notes(results, published) == published_sources(results, published) == []


def test_on_the_page(tmp_path, published):
    shown = published_by("<i>S</i>", "COCO", False, "<b>a paper</b>", voc20=90.3)
    results = {"voc20": RUN | {"images": 311}, "voc20_untrained": RUN}
    write_report(
        tmp_path / "r.html",
        Report("t", results=results, baselines={"voc20": "voc20_untrained"}, published=[shown, *published]),
    )
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    page.assert_self_contained()
    assert "<i>S</i>" not in page.html and "<i>S</i>COCOunverified" in page.cells
    assert "<b>a paper</b>" not in page.html and "(unverified): <b>a paper</b>" in page.text
    assert "311 of 1,449,not comparable" in page.cells
    assert "not comparable with the published ones" in page.text


def test_no_section_without_a_common_benchmark(tmp_path, published):
    write_report(tmp_path / "r.html", Report("t", results={"scenes": RUN}, published=published))
    assert "Published" not in Page((tmp_path / "r.html").read_text(encoding="utf-8")).text


def test_own_file(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump([ENTRY]))
    assert load_published(path) == (published_by("S", "x", True, "page 1", voc20=50),)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [", ["cannot be read"]),
        ("a: 1", ["list of systems"]),
        ("- 3", ["entry 1"]),
        (yaml.safe_dump([ENTRY, ENTRY | {"verfied": True}]), ["entry 2", "'verfied'", "verified"]),
        (yaml.safe_dump([ENTRY | {"verified": "yes"}]), ["entry 1", "verified=yes"]),
        (yaml.safe_dump([{"system": "S"}]), ["entry 1", "setting="]),
        (yaml.safe_dump([ENTRY | {"miou": {"voc20": "high"}}]), ["miou", "high"]),
        (yaml.safe_dump([ENTRY | {"miou": {"voc20": 903}}]), ["miou", "903"]),
    ],
)
def test_wrong_file_is_one_line(tmp_path, content, says):
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(DataError) as caught:
        load_published(tmp_path / "p.yaml")
    message = " ".join(str(caught.value).split())
    assert str(tmp_path / "p.yaml") in message and all(part in message for part in says), message
    with pytest.raises(DataError, match=r"gone\.yaml"):
        load_published(tmp_path / "gone.yaml")
