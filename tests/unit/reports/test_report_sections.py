"""What the report shows beside scores, bars and curves: names columns, other tasks, confusions, worst and best."""

from PIL import Image

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
PICTURE = Image.new("RGB", (8, 8))


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


def test_missing_benchmark_is_listed_with_its_reason(tmp_path):
    page = page_of(tmp_path, results=RESULTS)
    start = page.cells.index("context59")
    assert page.cells[start + 1] == "not measured: benchmark.root=<gone> is no folder"
    (sentence,) = page.of_class("sentence")
    assert sentence["colspan"] == "4"
    assert "<gone>" not in page.html


def test_other_tasks():
    assert retrieval_table(RESULTS).rows == (
        ("flickr", "10.0", "20.0", "30.0", "11.0", "21.0", "31.0", "1,000, 1 skipped", "5,000"),
    )
    assert classification_table(RESULTS).rows == (("imagenet", "41.0", "72.5", "50,000"),)
    assert retrieval_table({"voc20": VOC}) is None and classification_table({"voc20": VOC}) is None
    gone = {"kind": "retrieval", "missing": "no captions"}
    assert retrieval_table({"flickr": gone}).rows == (("flickr", "not measured: no captions"),)


def test_columns_that_only_some_results_need():
    table = results_table({"scenes": VOC | {"official_images": None}}, {})
    assert table.columns[-1] == "Images" and table.rows[0][-1] == "311"
    table = results_table({"a": VOC, "b": {"mIoU": 7.0}}, {"a": "b"})
    assert table.rows == (("a", "77.1", "79.1", "7.0", "11.0 ×", "80.3", "311 of 1,449"),)
    assert len(table.columns) == 7
    results = {"a": {"mIoU": 5.0}, "b": {"mIoU": 0.0}}
    assert results_table(results, {"a": "b"}).rows == (("a", "5.0", "0.0", "–", "–", "–"),)


def test_classes_trained_with_masks_apart_from_others(tmp_path):
    apart = VOC | {"trained_with_masks": {"seen": 45.04, "unseen": 20.0, "harmonic": 27.69}}
    nothing = ADE | {"trained_with_masks": {"seen": None, "unseen": 11.0, "harmonic": None}}
    table = masks_table(RESULTS | {"voc20": apart, "ade20k": nothing})
    assert table.rows == (("voc20", "45.0", "20.0", "27.7"), ("ade20k", "–", "11.0", "–"))
    assert masks_table(RESULTS) is None
    page = page_of(tmp_path, results={"voc20": apart, "before": apart}, baselines={"voc20": "before"})
    assert page.cells.count("27.7") == 1  # a baseline has no row


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
    page = page_of(
        tmp_path,
        results=RESULTS,
        published=[Published(system="S", setting="x", verified=True, source="here", miou={"voc20": 1.0})],
        confusions={"voc20": ["a taken for b"]},
        worst=[Overlay("voc20", "w", PICTURE)],
        best=[Overlay("voc20", "b", PICTURE)],
        overlays=[Overlay("voc20", "o", PICTURE)],
        notes=["n"],
    )
    targets = [attributes["href"].removeprefix("#") for attributes in page.all("a")]
    headings = [attributes["id"] for attributes in page.all("h2")]
    assert targets == headings
    assert " ".join(headings) == "scores tasks published classes confusions worst best pictures protocol notes"


def test_confusions_on_the_page(tmp_path):
    page = page_of(tmp_path, confusions={"voc20 <x>": ["<b> taken for chair", "sofa taken for chair"], "clean": []})
    assert page.html.count("taken for") == 2
    assert "&lt;b&gt; taken for chair" in page.html and "voc20 &lt;x&gt;" in page.html
    assert "clean" not in page.text


def test_worst_and_best_pictures_carry_their_names(tmp_path):
    page = page_of(
        tmp_path,
        worst=[Overlay("voc20", "2007_000033", PICTURE, "mIoU 3.1")],
        best=[Overlay("voc20", "<i>2007_000999", PICTURE)],
    )
    assert [image["alt"] for image in page.all("img")] == ["2007_000033", "<i>2007_000999"]
    worst, best = page.html.index('id="worst"'), page.html.index('id="best"')
    assert worst < page.html.index("<b>2007_000033</b>") < best < page.html.index("<b>&lt;i&gt;2007_000999</b>")
    assert "mIoU 3.1" in page.text and 'id="pictures"' not in page.html
