import json
from html.parser import HTMLParser

import pytest

import data_prep.bank.program as program
from data_prep.bank.coverage import Coverage, measure
from data_prep.bank.mining import Rules, mine
from data_prep.bank.report import Comparison, Example, coverage_curve, write_bank_report
from simzss.concepts.bank import ConceptBank, Entry
from simzss.concepts.concept import Caption, Concept
from simzss.data.shards import write_shard
from simzss.errors import InputError
from tests.support.files import PIPELINE, annotation, caption, sample, write_tar
from tests.support.program import exit_code

BANK = ConceptBank([Entry("zebra"), Entry("dog", ("puppy",)), Entry("tennis racket"), Entry("unicorn", ("pegasus",))])
CAPTIONS = [
    [caption("dog and puppy", "dog", "puppy"), caption("running fast")],
    [caption("a cow sees a dog", "cow", "dog"), caption("a cow", "cow"), caption("zebra", "zebra")],
    [caption("a tennis racket", "tennis racket"), caption("a racket", "racket")],
]


@pytest.fixture
def folder(tmp_path):
    """Two shards in two folders, and one sample that cannot be read."""
    for name, groups in (("a", CAPTIONS[:2]), ("b/c", CAPTIONS[2:])):
        (tmp_path / "shards" / name).mkdir(parents=True)
        samples = [sample(i, group) for i, group in enumerate(groups)]
        write_shard(tmp_path / "shards" / name / "s.tar", samples, PIPELINE)
    write_tar(tmp_path / "shards" / "bad.tar", [("x.json", annotation())])
    return tmp_path / "shards"


@pytest.fixture
def bank(tmp_path):
    path = tmp_path / "bank.txt"
    path.write_text("zebra\ndog, puppy\ntennis racket\nunicorn, pegasus\n", encoding="utf-8")
    return path


def test_coverage_against_a_hand_count(folder):
    coverage, skipped = measure([str(path) for path in sorted(folder.rglob("*.tar"))], BANK)
    assert skipped == 1
    report = coverage.report()
    assert report == {
        "concepts": 4,
        "captions": 7,
        "captions_with_concept_percent": pytest.approx(100 * 4 / 7),
        "mentions": 8,
        "mentions_in_bank_percent": pytest.approx(100 * 5 / 8),
        "counts": {"dog": 3, "zebra": 1, "tennis racket": 1},
        "never_matched": ["unicorn"],
        "unmatched_nouns": {"cow": 2, "racket": 1},
    }
    assert next(iter(report["counts"])) == "dog"
    assert list(report["unmatched_nouns"]) == ["cow", "racket"]


def test_nothing_counted():
    report = Coverage(BANK).report()
    assert report["captions_with_concept_percent"] == report["mentions_in_bank_percent"] == 0
    assert report["never_matched"] == ["zebra", "dog", "tennis racket", "unicorn"]


def test_never_matched_keeps_the_order_of_the_bank():
    coverage = Coverage(BANK)
    coverage.add(caption("a puppy", "puppy"))
    assert coverage.never_matched() == ["zebra", "tennis racket", "unicorn"]


def test_surface_forms():
    entries = [Entry("glass"), Entry("eyeglasses", ("glasses",))]
    mention = Caption("glasses", (Concept("glasses", "glass", 0, 7),))
    for surface_forms, never in ((True, ["glass"]), (False, ["eyeglasses"])):
        coverage = Coverage(ConceptBank(entries, surface_forms))
        coverage.add(mention)
        assert coverage.never_matched() == never


def test_program_writes_the_report(folder, bank, tmp_path, monkeypatch, capsys):
    target = tmp_path / "out" / "report.json"
    assert exit_code(program.main, [f"captions={folder}", f"bank={bank}", f"output={target}"], monkeypatch) == 0
    report = json.loads(target.read_text(encoding="utf-8"))
    assert report["counts"] == {"dog": 3, "zebra": 1, "tennis racket": 1}
    printed = " ".join(capsys.readouterr().out.split())
    assert "7 captions, 57.1 %" in printed and "62.5 % of 8" in printed
    assert "1 of 4 names never match: unicorn" in printed
    assert "skipped 1" in printed


def test_program_takes_a_pattern_and_leaves_out_excluded_classes(folder, tmp_path, monkeypatch):
    bank = tmp_path / "bank.txt"
    bank.write_text("zebra\ndog, puppy\ncow\n", encoding="utf-8")
    target = tmp_path / "report.json"
    arguments = [f"captions={folder}/a/*.tar", f"bank={bank}", "exclude=[voc20]", f"output={target}"]
    assert exit_code(program.main, arguments, monkeypatch) == 0
    report = json.loads(target.read_text(encoding="utf-8"))
    assert report["concepts"] == 1
    assert report["counts"] == {"zebra": 1}
    assert report["unmatched_nouns"] == {"dog": 2, "puppy": 1, "cow": 2}


def test_bank_of_the_configuration_folder_is_found(folder, monkeypatch, capsys):
    assert exit_code(program.main, [f"captions={folder}/a/*.tar"], monkeypatch) == 0
    assert "names never match" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["a[1]", "{b}", "c*"])
def test_folder_whose_name_looks_like_a_pattern(tmp_path, bank, monkeypatch, capsys, name):
    (tmp_path / name).mkdir()
    write_shard(tmp_path / name / "s.tar", [sample(0)], PIPELINE)
    assert exit_code(program.main, [f"captions={tmp_path / name}", f"bank={bank}"], monkeypatch) == 0
    assert "1 captions" in capsys.readouterr().out


def test_words_are_printed_as_they_are(tmp_path, bank, monkeypatch, capsys):
    write_shard(tmp_path / "s.tar", [sample(0, [caption("[red] :dog: [/]", "[red]", ":dog:", "[/]")])], PIPELINE)
    assert exit_code(program.main, [f"captions={tmp_path}/s.tar", f"bank={bank}"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("[red]", ":dog:", "[/]"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["captions={tmp}/gone"], "gone"),
        (["captions={tmp}/empty"], "empty"),
        (["captions={folder}/bad.tar"], "bad.tar"),
        (["captions={folder}", "bank={tmp}/gone.txt"], "gone.txt"),
        (["captions={folder}", "exclude=[voc22]"], "voc20"),
        (["captions={folder}", "excludes=[voc20]"], "exclude"),
        (["captions={folder}", "top=many"], "top=many"),
        (["captions={folder}", "bank={tmp}/bank.txt", "output={tmp}/bank.txt/report.json"], "output={tmp}"),
        (["captions={folder}", "bank={tmp}/bank.txt", "output={tmp}/empty"], "output={tmp}"),
        (["captions={folder}", "report={tmp}/report.html"], "propose=FILE"),
        ([], "captions"),
    ],
)
def test_bad_input_is_one_line(folder, bank, tmp_path, monkeypatch, capsys, arguments, says):
    (tmp_path / "empty").mkdir()
    filled = [argument.format(tmp=tmp_path, folder=folder) for argument in arguments]
    assert exit_code(program.main, filled, monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert says.format(tmp=tmp_path) in error


def test_folder_without_shards_names_the_key_of_this_program(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bank", f"captions={tmp_path}"])
    with pytest.raises(InputError) as caught:
        program.main()
    assert "data.shards" not in str(caught.value) and "captions" in str(caught.value)


# --------------------------------------------------------------------------------------- report on a proposed bank


class Page(HTMLParser):
    """Text by the element that it stands in, and all elements with their attributes."""

    VOID = ("meta", "line", "polyline", "circle", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], " ".join(data.split())))

    def within(self, tag):
        return [text for name, text in self.texts if name == tag]


PHOTOS = [[[("dog", "dog")], [("puppies", "puppy"), ("dog", "dog")]]] * 3 + [
    [[("dogs", "dogs"), ("top", "top")], []]
] * 2
EVIL = "<script>alert('x')</script> & \ud800"


def mined(**rules):
    return mine(PHOTOS, frozenset({"top"}), frozenset(), None, Rules(min_count=2, **rules))


@pytest.fixture
def page(tmp_path):
    target = tmp_path / "new" / "report.html"
    examples = [[Example("a <b>", "dog", "</b>"), Example("", EVIL, "")], []]
    comparisons = [Comparison("proposed", 2, 81.25, 50.0, 0), Comparison(EVIL, 3, 1.0, 2.0, 1)]
    write_bank_report(target, mined(), {"captions": EVIL}, comparisons, examples, skipped=7)
    return target.read_text(encoding="utf-8")


def test_page_shows_concepts_with_examples_and_comparisons(page):
    parsed = Page(page)
    assert parsed.within("mark") == ["dog", EVIL.replace("\ud800", "?")]
    rows = parsed.within("th")
    assert "dog" in rows and "puppies" in rows
    cells = parsed.within("td")
    assert "81.2" in cells and "proposed" in rows
    assert dict(zip(parsed.within("dt"), parsed.within("dd"), strict=True))["unreadable samples"] == "7"


def test_page_says_what_was_merged_and_what_was_dropped(page):
    parsed = Page(page)
    summaries = dict(
        zip(parsed.within("summary"), [t for n, t in parsed.texts if n == "span" and "words" in t], strict=True)
    )
    assert summaries["number"].startswith("· 1 words, in 2 captions")
    assert summaries["stop"].startswith("· 1 words, in 2 captions")
    assert summaries["rare"].startswith("· 0 words")
    at = parsed.texts.index(("th", "dogs"))
    assert [text for _, text in parsed.texts[at : at + 4]] == ["dogs", "2", "dog", "6"]
    assert ("p", "top") in parsed.texts


def test_page_is_escaped_and_loads_nothing(page):
    parsed = Page(page)
    assert "script" not in {tag for tag, _ in parsed.elements}
    assert "b" not in {tag for tag, _ in parsed.elements}
    links = [attrs[key] for _, attrs in parsed.elements for key in ("src", "href") if key in attrs]
    assert links and all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= {attrs.get("id") for _, attrs in parsed.elements}
    assert "http:" not in page and "https:" not in page and "url(" not in page


def test_curve_has_a_line_for_captions_and_one_for_mentions():
    curve = coverage_curve(mined())
    assert curve.series == {
        "captions with a concept": ([1.0, 2.0], [pytest.approx(80.0), pytest.approx(80.0)]),
        "noun concepts in the bank": ([1.0, 2.0], [pytest.approx(100 * 8 / 13), pytest.approx(100 * 11 / 13)]),
    }


def test_long_lists_are_cut_and_say_so(tmp_path):
    photos = [[[(f"b{a}{b}", f"b{a}{b}") for a in "abcdefghijklmnopqrstu" for b in "abcdefghijklmnopqrstu"]]] * 3
    result = mine(photos, frozenset(), frozenset(), None, Rules(size=1))
    write_bank_report(tmp_path / "report.html", result, {}, [], [[] for _ in result.concepts])
    texts = [text for _, text in Page((tmp_path / "report.html").read_text(encoding="utf-8")).texts]
    assert f"and {21 * 21 - 400:,} less frequent ones" in texts


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="report="):
        write_bank_report(tmp_path / "file" / "x.html", mined(), {}, [], [[], []])
