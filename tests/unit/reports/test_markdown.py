"""The Markdown report: read back by a Markdown parser, so that names cannot become markup."""

import re

import pytest
from markdown_it import MarkdownIt

from simzss.reports.markdown import escaped, markdown_table, write_markdown
from simzss.reports.published import Published
from simzss.reports.report import Report
from simzss.reports.tables import Table
from tests.unit.reports.pages import Page

READER = MarkdownIt("commonmark").enable("table")
ODD = [
    "coco_object",
    "_x_",
    "a|b",
    "a\\|b",
    "*bold*",
    "**b**",
    "`code`",
    "<script>alert(1)</script>",
    "[a](http://x.org)",
    "![a](b.png)",
    "&lt;b&gt; & R&D",
    "# head",
    "- item",
    "+ item",
    "> quote",
    "1. first",
    "12) twelfth",
    "---",
    "--",
    "===",
    "-3.5",
    "77.1",
    "−",
    "a\nb",
    "__init__",
    "x ~~y~~",
    "猫",
]


@pytest.mark.parametrize("text", ODD)
def test_text_is_shown_as_it_is(text):
    shown = " ".join(text.split())
    page = Page(READER.render(escaped(text)))
    assert [tag for tag, _ in page.tags] == ["p"] and page.text.strip() == shown
    assert Page(READER.render(markdown_table(Table(("a", "b"), ((text, text),))))).cells == ["a", "b", shown, shown]


@pytest.mark.parametrize("text", ["77.1", "-3.5", "coco_object", "1,449 of 1,449", "outputs/a-b", "−0.12"])
def test_plain_text_stays_readable_in_the_source(text):
    assert escaped(text) == text


def test_row_with_a_sentence_is_filled_up():
    table = markdown_table(Table(("a", "b\nc", "d"), (("x", "not measured"), ("y", "1", "2"))))
    assert table.splitlines() == [
        "| a | b c | d |",
        "| --- | ---: | ---: |",
        "| x | not measured |  |",
        "| y | 1 | 2 |",
    ]


@pytest.fixture
def report():
    protocol = {"short_side": 448, "templates": [f"a photo {i} of a {{}}." for i in range(9)]}
    return Report(
        title="Zero-shot *segmentation*",
        summary=[("model", "outputs/a_b/model")],
        results={
            "voc20": {
                "mIoU": 77.14,
                "aAcc": 80.26,
                "images": 311,
                "official_images": 1449,
                "per_class": {"<b>": 3.0},
                "protocol": protocol,
                "engineered": {"mIoU": 79.0},
                "trained_with_masks": {"seen": 45.04, "unseen": 20.0, "harmonic": 27.69},
            },
            "voc20_untrained": {"mIoU": 7.0, "protocol": protocol},
            "context59": {"missing": "no folder given"},
            "flickr": {"kind": "retrieval", "image_to_text": {"R@1": 12.0}, "images": 10, "captions": 50},
            "imagenet": {"kind": "classification", "top1": 41.0, "top5": 72.5, "images": 20},
        },
        baselines={"voc20": "voc20_untrained"},
        published=[Published(system="SimZSS", setting="COCO", verified=False, source="a paper", miou={"voc20": 90.3})],
        notes=["A note."],
    )


def test_report(tmp_path, report):
    path = tmp_path / "deep" / "report.md"
    write_markdown(path, report)
    text = path.read_text(encoding="utf-8")
    page = Page(READER.render(text))
    assert re.findall(r"^#+ .*$", text, re.M) == [
        "# Zero-shot \\*segmentation\\*",
        "## Scores",
        "## Classes trained with masks",
        "## Retrieval",
        "## Classification",
        "## Published systems",
        "## Protocol",
        "## Notes",
    ]
    start = page.cells.index("voc20")
    assert page.cells[start : start + 7] == ["voc20", "77.1", "79.0", "7.0", "11.0 ×", "80.3", "311 of 1,449"]
    start = page.cells.index("27.7")
    assert page.cells[start - 3 : start + 1] == ["voc20", "45.0", "20.0", "27.7"]
    start = page.cells.index("context59")
    assert page.cells[start + 1] == "not measured: no folder given"
    start = page.cells.index("flickr")
    assert page.cells[start + 1 : start + 4] == ["12.0", "–", "–"]
    assert {"41.0", "72.5", "SimZSS COCO unverified", "90.3", "311 of 1,449, not comparable"} <= set(page.cells)
    for sentence in (
        "model: outputs/a_b/model",
        "voc20 against voc20_untrained.",
        "not comparable with the published ones",
        "SimZSS, COCO (unverified): a paper",
        "voc20, voc20_untrained:",
        "short_side: 448",
        "a photo 7 of a {}.; … (9 in all)",
        "A note.",
    ):
        assert sentence in page.text, sentence
    assert "<b>" not in text  # no bars


def test_empty_report(tmp_path):
    write_markdown(tmp_path / "r.md", Report("Nothing"))
    assert (tmp_path / "r.md").read_text(encoding="utf-8") == "# Nothing\n"
