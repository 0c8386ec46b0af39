"""`simzss report`: output folders of `simzss eval` compared, by function and by command."""

import json
import sys
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt

from simzss import cli
from simzss.evaluation.bootstrap import difference_interval
from simzss.evaluation.counts import Counts, counts_file, load_counts
from simzss.evaluation.metrics import mious
from simzss.reports.compare import Column, compare_counts, compare_runs
from tests.support.models import refused
from tests.support.program import exit_code
from tests.unit.reports.pages import Page
from tests.unit.reports.runs import counts_of, write_run

CLASSES = ("dog", "<b>cat", "car")
IMAGES = [f"2007_{i:03d}" for i in range(30)]
PLAIN, ENGINEERED = ("voc20", "plain"), ("voc20", "engineered")


@pytest.fixture
def runs(tmp_path):
    """Two runs on the same photos, the second one better, and one that lacks photos and has others."""
    return [
        write_run(
            tmp_path / "a",
            {PLAIN: counts_of(IMAGES, CLASSES, 1, 0.3), ENGINEERED: counts_of(IMAGES, CLASSES, 2, 0.4)},
            context59={"missing": "no folder"},
            flickr={"kind": "retrieval", "images": 5},
        ),
        write_run(
            tmp_path / "b",
            {PLAIN: counts_of(IMAGES[::-1], CLASSES, 3, 0.8), ENGINEERED: counts_of(IMAGES, CLASSES, 4, 0.4)},
        ),
        write_run(
            tmp_path / "c",
            {PLAIN: counts_of([*IMAGES[4:], "x", "y"], CLASSES, 5, 0.3), ("ade20k", "plain"): counts_of("p", CLASSES)},
        ),
    ]


def miou(per_image):
    return float(mious(per_image.sum(dim=0)))


def compared(runs, resamples=200, seed=0, confidence=0.95):
    return compare_runs(runs, resamples, seed, confidence)


def test_differences_of_equal_photos(runs):
    result = compared(runs[:2])
    assert compared(runs).differences[:2] == result.differences  # whatever other runs there are
    assert [(item.benchmark, item.names) for item in result.differences] == [PLAIN, ENGINEERED]
    for item, names in zip(result.differences, ("plain", "engineered"), strict=True):
        first, second = (load_counts(counts_file(run, "voc20", names)) for run in runs[:2])
        before, after = miou(first.per_image), miou(second.per_image)
        assert (item.reference_miou, item.run_miou) == pytest.approx((before, after))
        assert item.difference == pytest.approx(after - before)
        assert item.low < item.difference < item.high
        assert (item.images, item.only_reference, item.only_run, item.other_truth) == (30, 0, 0, 0)
    assert result.differences[0].low > 0 and result.differences[0].excludes_zero
    assert not result.not_compared


def test_images_are_matched_by_name_not_by_place(runs):
    first, second = (load_counts(counts_file(run, "voc20")) for run in runs[:2])
    assert first.images != second.images
    column = Column("run", *PLAIN)
    found = compare_counts(column, first, second, 100, 0, 0.9)
    order = torch.tensor([second.images.index(name) for name in first.images])
    expected = difference_interval(first.per_image, second.per_image[order], 100, 0, 0.9)
    assert (found.low, found.high) == expected
    turned = Counts(first.images[::-1], first.classes, first.per_image.flip(0), first.confusion)
    assert compare_counts(column, turned, second, 100, 0, 0.9) == found


def test_images_of_one_run_only_are_left_out_and_counted(runs):
    (item,) = (item for item in compared(runs).differences if item.run == str(runs[2]))
    assert (item.images, item.only_reference, item.only_run) == (26, 4, 2)
    first = load_counts(counts_file(runs[0], "voc20"))
    assert item.reference_miou == pytest.approx(miou(first.per_image[4:]))


def test_what_only_one_run_has_is_listed(runs):
    listed = {(item.run, item.benchmark, item.names): item.reason for item in compared(runs).not_compared}
    assert listed == {
        (str(runs[2]), "voc20", "engineered"): f"not measured by {runs[2]}",
        (str(runs[2]), "ade20k", "plain"): f"not measured by {runs[0]}",
    }


def test_reason_of_a_missing_benchmark_is_passed_on(tmp_path, runs):
    other = {PLAIN: counts_of(IMAGES, CLASSES, 6), ("context59", "plain"): counts_of("p", CLASSES)}
    (item,) = (
        item
        for item in compared([runs[0], write_run(tmp_path / "d", other)]).not_compared
        if item.benchmark == "context59"
    )
    assert item.reason == f"not measured by {runs[0]}: no folder"


def test_equal_runs(tmp_path, runs):
    counts = load_counts(counts_file(runs[0], "voc20"))
    (item,) = compared([runs[0], write_run(tmp_path / "same", {PLAIN: counts})]).differences
    assert (item.difference, item.low, item.high) == (0, 0, 0) and not item.excludes_zero


def test_seed_and_confidence(runs):
    def interval(**settings):
        item = compared(runs[:2], **settings).differences[0]
        return item.low, item.high

    assert interval(seed=1) == interval(seed=1) != interval(seed=2)
    (low, high), (wide_low, wide_high) = interval(confidence=0.5), interval(confidence=0.99)
    assert wide_low < low < high < wide_high


def test_other_masks_are_noticed(tmp_path, runs):
    counts = load_counts(counts_file(runs[0], "voc20"))
    # The same photos with one more pixel of a class that the model missed.
    per_image, confusion = counts.per_image.clone(), counts.confusion.clone()
    per_image[2, 0, 2] += 1
    per_image[2, 1, 1] += 1
    confusion[0, 1] += 1
    changed = Counts(counts.images, counts.classes, per_image, confusion)
    (item,) = compared([runs[0], write_run(tmp_path / "d", {PLAIN: changed})]).differences
    assert item.other_truth == 1


def test_no_image_that_counts_in_both(tmp_path):
    first = write_run(tmp_path / "a", {PLAIN: counts_of("ab", CLASSES), ("x", "plain"): counts_of("a", CLASSES)})
    second = write_run(tmp_path / "b", {PLAIN: counts_of("cd", CLASSES), ("x", "plain"): counts_of("a", CLASSES)})
    result = compared([first, second])
    assert [item.benchmark for item in result.differences] == ["x"]
    assert [(item.benchmark, item.reason) for item in result.not_compared] == [
        ("voc20", "no image that counts is in both")
    ]


def test_results_without_counts_in_both_runs_are_passed_over(tmp_path):
    untrained = {"mIoU": 3.0, "images": 2}
    folders = [
        write_run(tmp_path / name, {PLAIN: counts_of("ab", CLASSES, seed)}, voc20_untrained=untrained)
        for seed, name in enumerate("ab")
    ]
    (item,) = compared(folders).not_compared
    assert item.benchmark == "voc20_untrained" and "voc20_untrained.safetensors" in item.reason


def refuses(runs, *parts):
    refused(lambda: compared(runs), *map(str, parts))


def test_refuses_folders_without_results(tmp_path, runs):
    refuses([], "two runs")
    refuses(runs[:1], "two runs", "simzss report")
    refuses([runs[0], tmp_path / "gone"], tmp_path / "gone" / "results.json", "does not exist")
    for content in ("{", "[]", '{"voc20": 3}', "\x00"):
        (runs[1] / "results.json").write_text(content)
        refuses(runs[:2], runs[1] / "results.json")


def test_refuses_missing_and_broken_counts(runs):
    path = counts_file(runs[1], "voc20", "engineered")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    refuses(runs[:2], path, "cannot be read")
    path.unlink()
    refuses(runs[:2], path, "do not exist")


def test_refuses_counts_of_another_measurement(runs):
    counts_file(runs[1], "voc20").write_bytes(counts_file(runs[0], "voc20").read_bytes())
    refuses(runs[:2], counts_file(runs[1], "voc20"), runs[1] / "results.json", "different measurements")


@pytest.mark.parametrize(
    ("classes", "says"), [(("dog", "car", "<b>cat"), ["'<b>cat'", "'car'"]), (("dog", "cat"), ["3 and 2"])]
)
def test_refuses_different_classes(tmp_path, runs, classes, says):
    other = write_run(tmp_path / "d", {PLAIN: counts_of(IMAGES, classes)})
    refuses([runs[0], other], counts_file(runs[0], "voc20"), counts_file(other, "voc20"), "different classes", *says)


def test_refuses_runs_without_anything_in_common(tmp_path, runs):
    empty = write_run(tmp_path / "empty", {})
    refuses([runs[0], empty], runs[0], empty, "no benchmark", "voc20")
    refuses([empty, empty], "no benchmark")


# ----------------------------------------------------------------------------------------------- the command


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run `simzss` in an empty folder; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = exit_code(lambda: cli.dispatch(sys.argv[1:]), [str(argument) for argument in arguments], monkeypatch)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_command(command, runs):
    code, out, err = command("report", *runs, "output_dir=cmp", "resamples=100", "seed=1", "confidence=0.9")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 4 and lines[-1] == str(Path("cmp") / "comparison.html")
    assert lines[0].startswith(f"{runs[1]}  voc20 (plain names): +") and lines[0].endswith("(30 images)")

    content = json.loads(Path("cmp/comparison.json").read_text(encoding="utf-8"))
    assert {key: content[key] for key in ("reference", "resamples", "seed", "confidence")} == {
        "reference": str(runs[0]),
        "resamples": 100,
        "seed": 1,
        "confidence": 0.9,
    }
    expected = compared(runs, 100, 1, 0.9)
    assert [item["difference"] for item in content["differences"]] == [item.difference for item in expected.differences]
    assert len(content["not_compared"]) == 2

    page = Page(Path("cmp/comparison.html").read_text(encoding="utf-8"))
    page.assert_self_contained()
    markdown = Page(MarkdownIt().enable("table").render(Path("cmp/comparison.md").read_text(encoding="utf-8")))
    first = expected.differences[0]
    for shown in (page, markdown):
        start = shown.cells.index("voc20")
        assert shown.cells[start : start + 5] == [
            "voc20",
            "plain",
            f"{first.reference_miou:.2f}",
            f"{first.run_miou:.2f}",
            f"+{first.difference:.2f}",
        ]
        assert shown.cells[start + 6 : start + 8] == ["yes", "30"]
        assert f"left out 4 images that only {runs[0]} has and 2 that only {runs[2]} has" in shown.text
        assert "engineered names not compared: not measured by" in shown.text
        assert "90 %" in shown.text and "not what another training seed would" in shown.text


def test_names_are_escaped(command, tmp_path):
    counts = counts_of("ab", CLASSES)
    name = "a|b<script>&"
    odd = write_run(tmp_path / "x<i>y", {(name, "plain"): counts})
    code, _, _ = command("report", odd, odd, "resamples=3")
    assert code == 0
    html = Path("outputs/compare/comparison.html").read_text(encoding="utf-8")
    page = Page(html)
    page.assert_self_contained()
    assert "<script>" not in html and "<i>" not in html
    assert name in page.cells and "x<i>y" in page.text
    markdown = Page(
        MarkdownIt().enable("table").render(Path("outputs/compare/comparison.md").read_text(encoding="utf-8"))
    )
    assert name in markdown.cells and "x<i>y" in markdown.text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["two runs"]),
        (["a", "b", "resamples=0"], ["resamples=0"]),
        (["a", "b", "seed=-1"], ["seed=-1"]),
        (["a", "b", "confidence=1"], ["confidence=1"]),
        (["a", "b", "sed=1"], ["'sed'", "seed"]),
        (["a", "b", "output_dir=a/results.json/x"], ["output_dir=a/results.json/x"]),
    ],
)
def test_command_refuses_in_one_line(command, runs, arguments, says):
    code, out, err = command("report", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in says), err
    assert not Path("outputs").exists()
