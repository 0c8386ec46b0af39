"""What the report shows beside scores, bars and curves: names columns, other tasks, confusions, worst and best."""

import pytest
import torch
from PIL import Image

from simzss.evaluation.confusion import Confusion, confusion_pairs
from simzss.reports.published import Published
from simzss.reports.report import Overlay, Report, write_report
from simzss.reports.tables import classification_table, masks_table, protocols, results_table, retrieval_table
from tests.unit.reports.pages import Page

VOC = {
    "mIoU": 77.14,
    "aAcc": 80.26,
    "images": 311,
    "official_images": 1449,
    "per_class": {"dog": 61.5},
    "protocol": {"short_side": 448},
    "engineered": {"mIoU": 79.06, "aAcc": 81.0, "per_class": {"dog": 70.0}, "protocol": {"short_side": 448}},
}
ADE = {"mIoU": 10.0, "aAcc": 30.0, "images": 2000, "official_images": 2000, "per_class": {"sky": 9.0}}
RETRIEVAL = {
    "kind": "retrieval",
    "image_to_text": {"R@1": 10.0, "R@5": 20.0, "R@10": 30.0},
    "text_to_image": {"R@1": 11.0, "R@5": 21.0, "R@10": 31.04},
    "images": 1000,
    "captions": 5000,
    "skipped": [{"name": "a.jpg", "reason": "broken"}],
}
CLASSIFICATION = {"kind": "classification", "top1": 41.0, "top5": 72.5, "images": 50_000, "per_class": {"tench": 9.0}}
MISSING = {"missing": "benchmark.root=<gone> is no folder"}
RESULTS = {"voc20": VOC, "ade20k": ADE, "context59": MISSING, "flickr": RETRIEVAL, "imagenet": CLASSIFICATION}
MATRIX = torch.tensor([[70, 20, 10], [5, 95, 0], [0, 30, 2]])
NAMES = ("sofa", "chair", "<b>")


def page_of(tmp_path, **fields) -> Page:
    write_report(tmp_path / "r.html", Report("t", **fields))
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    page.assert_self_contained()
    return page


def test_both_names_columns_and_the_official_count():
    table = results_table(RESULTS, {})
    assert table.columns == (
        "Benchmark",
        "mIoU,\nplain names",
        "mIoU,\nengineered names",
        "Pixel\naccuracy",
        "Images\nmeasured",
    )
    assert table.rows == (
        ("voc20", "77.1", "79.1", "80.3", "311 of 1,449"),
        ("ade20k", "10.0", "–", "30.0", "2,000 of 2,000"),
        ("context59", "not measured: benchmark.root=<gone> is no folder"),
    )


def test_unknown_official_count_needs_no_column_of_its_own():
    table = results_table({"scenes": VOC | {"official_images": None}}, {})
    assert table.columns[-1] == "Images" and table.rows[0][-1] == "311"


def test_baseline_columns_stand_beside_both_names_columns():
    table = results_table({"a": VOC, "b": {"mIoU": 7.0}}, {"a": "b"})
    assert table.rows == (("a", "77.1", "79.1", "7.0", "11.0 ×", "80.3", "311 of 1,449"),)
    assert len(table.columns) == 7


def test_missing_benchmark_is_listed_with_its_reason(tmp_path):
    page = page_of(tmp_path, results=RESULTS)
    start = page.cells.index("context59")
    assert page.cells[start + 1] == "not measured: benchmark.root=<gone> is no folder"
    (sentence,) = page.of_class("sentence")
    assert sentence["colspan"] == "4"
    assert "<gone>" not in page.html


def test_only_missing_benchmarks_are_a_table_too(tmp_path):
    page = page_of(tmp_path, results={"context59": MISSING})
    assert page.cells[-2:] == ["context59", "not measured: benchmark.root=<gone> is no folder"]


def test_other_tasks():
    assert retrieval_table(RESULTS).rows == (
        ("flickr", "10.0", "20.0", "30.0", "11.0", "21.0", "31.0", "1,000, 1 skipped", "5,000"),
    )
    assert classification_table(RESULTS).rows == (("imagenet", "41.0", "72.5", "50,000"),)
    assert retrieval_table({"voc20": VOC}) is None and classification_table({"voc20": VOC}) is None
    gone = {"kind": "retrieval", "missing": "no captions"}
    assert retrieval_table({"flickr": gone}).rows == (("flickr", "not measured: no captions"),)


def test_classes_trained_with_masks_apart_from_others():
    apart = VOC | {"trained_with_masks": {"seen": 45.04, "unseen": 20.0, "harmonic": 27.69}}
    nothing = ADE | {"trained_with_masks": {"seen": None, "unseen": 11.0, "harmonic": None}}
    table = masks_table(RESULTS | {"voc20": apart, "ade20k": nothing})
    assert [column.split("\n")[-1] for column in table.columns] == [
        "Benchmark",
        "classes with masks",
        "other classes",
        "mean",
    ]
    assert table.rows == (("voc20", "45.0", "20.0", "27.7"), ("ade20k", "–", "11.0", "–"))
    assert masks_table(RESULTS) is None and masks_table({}) is None


def test_classes_trained_with_masks_on_the_page(tmp_path):
    result = VOC | {"trained_with_masks": {"seen": 45.04, "unseen": 20.0, "harmonic": 27.69}}
    page = page_of(tmp_path, results={"voc20": result, "before": result}, baselines={"voc20": "before"})
    start = page.cells.index("27.7")
    assert page.cells[start - 3 : start + 1] == ["voc20", "45.0", "20.0", "27.7"]
    assert page.cells.count("27.7") == 1  # a baseline has no row
    assert "Classes trained with masks" in page.text
    assert "Classes trained with masks" not in page_of(tmp_path, results=RESULTS).text


def test_other_tasks_have_their_own_section(tmp_path):
    page = page_of(tmp_path, results=RESULTS)
    assert page.html.index('id="tasks"') < page.cells_at("flickr") < page.cells_at("imagenet")
    scores = page.html[page.html.index('id="scores"') : page.html.index('id="tasks"')]
    assert "flickr" not in scores and "imagenet" not in scores
    assert "tench" not in page.html  # accuracies are no IoU


def test_engineered_protocol_is_shown_with_its_name():
    same, other = VOC, VOC | {"engineered": VOC["engineered"] | {"protocol": {"short_side": 336}}}
    assert [protocol.names for protocol in protocols({"voc20": same})] == [("voc20", "voc20 (engineered names)")]
    assert [protocol.names for protocol in protocols({"voc20": other})] == [("voc20",), ("voc20 (engineered names)",)]


def test_every_link_has_its_section(tmp_path):
    picture = Image.new("RGB", (4, 4))
    page = page_of(
        tmp_path,
        results=RESULTS,
        published=[Published("S", "x", True, "here", {"voc20": 1.0})],
        confusions={"voc20": Confusion(MATRIX, NAMES)},
        worst=[Overlay("voc20", "w", picture)],
        best=[Overlay("voc20", "b", picture)],
        overlays=[Overlay("voc20", "o", picture)],
        notes=["n"],
    )
    targets = [attributes["href"].removeprefix("#") for attributes in page.all("a")]
    headings = [attributes["id"] for attributes in page.all("h2")]
    assert targets == headings
    assert " ".join(headings) == "scores tasks published classes confusions worst best pictures protocol notes"


def test_confusions_by_pixels_as_sentences():
    assert confusion_pairs(Confusion(MATRIX, NAMES), 3) == [
        "<b> taken for chair: 93.8 % of <b>'s pixels",
        "sofa taken for chair: 20.0 % of sofa's pixels",
        "sofa taken for <b>: 10.0 % of sofa's pixels",
    ]
    assert len(confusion_pairs(Confusion(MATRIX, NAMES), 99)) == 4  # empty cells are no confusion
    assert MATRIX[0, 0] == 70  # the matrix is left as it was


def test_confusions_equal_in_pixels_keep_the_order_of_the_matrix():
    matrix = torch.full((4, 4), 7)
    pairs = confusion_pairs(Confusion(matrix, tuple("abcd")), 4)
    assert [pair.split(":")[0] for pair in pairs] == [f"{a} taken for {b}" for a, b in ("ab", "ac", "ad", "ba")]


def test_tiny_share_and_no_confusion():
    matrix = torch.tensor([[10_000_000, 1], [0, 3]])
    assert confusion_pairs(Confusion(matrix, ("a", "b")), 5) == ["a taken for b: < 0.1 % of a's pixels"]
    assert confusion_pairs(Confusion(torch.eye(2, dtype=torch.int64), ("a", "b")), 5) == []
    assert confusion_pairs(Confusion(matrix, ("a", "b")), 0) == []


def test_confusion_refuses_other_names():
    with pytest.raises(ValueError, match=r"\(3, 3\).*2 class names"):
        confusion_pairs(Confusion(MATRIX, ("a", "b")), 1)


def test_confusions_on_the_page(tmp_path):
    clean = Confusion(torch.eye(3, dtype=torch.int64), NAMES)
    page = page_of(tmp_path, confusions={"voc20 <x>": Confusion(MATRIX, NAMES), "clean": clean}, confusion_count=2)
    assert page.html.count("taken for") == 2
    assert "&lt;b&gt; taken for chair" in page.html and "voc20 &lt;x&gt;" in page.html
    assert "clean" not in page.text


def test_worst_and_best_pictures_carry_their_names(tmp_path):
    picture = Image.new("RGB", (8, 8))
    page = page_of(
        tmp_path,
        worst=[Overlay("voc20", "2007_000033", picture, "mIoU 3.1")],
        best=[Overlay("voc20", "<i>2007_000999", picture)],
    )
    assert [image["alt"] for image in page.all("img")] == ["2007_000033", "<i>2007_000999"]
    worst, best = page.html.index('id="worst"'), page.html.index('id="best"')
    assert worst < page.html.index("<b>2007_000033</b>") < best < page.html.index("<b>&lt;i&gt;2007_000999</b>")
    assert "mIoU 3.1" in page.text and 'id="pictures"' not in page.html
