"""Figures of other systems: the file that comes with the package, and the table beside a run."""

import pytest
import yaml

from simzss.config import choices
from simzss.errors import InputError
from simzss.reports.published import (
    Published,
    load_published,
    published_notes,
    published_sources,
    published_table,
)
from simzss.reports.report import Report, write_report
from tests.unit.reports.pages import Page

FIGURES = {
    ("SimZSS ViT-B/14", "COCO Captions"): {
        "voc21": 58.4,
        "context60": 37.2,
        "coco_object": 43.5,
        "voc20": 90.3,
        "cityscapes": 33.0,
        "context59": 43.1,
        "ade20k": 21.8,
        "coco_stuff": 29.0,
    },
    ("LiT ViT-B/14", "COCO Captions"): {
        "voc20": 86.1,
        "context59": 35.5,
        "coco_stuff": 25.6,
        "cityscapes": 25.8,
        "ade20k": 18.1,
    },
    ("SimZSS ViT-B/14", "LAION-400M"): {"voc21": 48.6},
    ("Trident ViT-H", "no training"): {
        "voc21": 70.8,
        "context60": 40.1,
        "coco_object": 42.2,
        "voc20": 88.7,
        "context59": 44.3,
        "coco_stuff": 28.6,
        "cityscapes": 47.6,
        "ade20k": 26.7,
    },
}
ENTRY = {"system": "S", "setting": "x", "verified": True, "source": "page 1", "miou": {"voc20": 50}}
RUN = {"mIoU": 80.0, "images": 1449, "official_images": 1449}


def test_the_packaged_figures():
    published = load_published()
    assert {(entry.system, entry.setting): entry.miou for entry in published} == FIGURES
    for entry in published:
        assert entry.source and "\n" not in entry.source
        assert entry.word == ("verified" if entry.verified else "unverified")


def test_the_packaged_benchmarks_are_those_of_the_configuration():
    # A misspelt benchmark would never find its row.
    names = {name for entry in load_published() for name in entry.miou}
    assert {"voc20", "voc21", "ade20k", "coco_object"} <= names & set(choices("benchmark"))


@pytest.fixture
def published():
    return (
        Published("SimZSS", "COCO", False, "a paper", {"voc20": 90.3, "ade20k": 21.8}),
        Published("Looked up", "web", True, "table 3", {"voc20": 70.0}),
        Published("Elsewhere", "web", True, "table 9", {"cityscapes": 1.0}),
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
    shown = Published("<i>S</i>", "COCO", False, "<b>a paper</b>", {"voc20": 90.3})
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
    assert load_published(path) == (Published("S", "x", True, "page 1", {"voc20": 50.0}),)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [", ["cannot be read"]),
        ("a: 1", ["list of systems"]),
        ("- 3", ["entry 1", "mapping"]),
        (yaml.safe_dump([ENTRY, ENTRY | {"verfied": True}]), ["entry 2", "'verfied'", "verified"]),
        (yaml.safe_dump([ENTRY | {"verified": "yes"}]), ["entry 1", "verified", "'yes'"]),
        (yaml.safe_dump([{"system": "S"}]), ["entry 1", "setting", "None"]),
        (yaml.safe_dump([ENTRY | {"miou": {"voc20": "high"}}]), ["miou.voc20", "'high'"]),
        (yaml.safe_dump([ENTRY | {"miou": {"voc20": 903}}]), ["miou.voc20", "903"]),
    ],
)
def test_wrong_file_is_one_line(tmp_path, content, says):
    path = tmp_path / "p.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        load_published(path)
    message = " ".join(str(caught.value).split())
    assert str(path) in message and all(part in message for part in says), message


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"gone\.yaml"):
        load_published(tmp_path / "gone.yaml")
