import json
import shutil

import nltk
import pytest

import data_prep.bank.program as program
import data_prep.bank.propose as propose
from data_prep.bank.corpus import Captions, read_stop
from data_prep.bank.coverage import find_shards
from simzss.concepts.bank import ConceptBank, read_entries
from simzss.concepts.concept import Caption, Concept
from simzss.data.shards import write_shard
from tests.support.files import PIPELINE, annotation, caption, sample, write_tar
from tests.support.language import pipeline
from tests.support.program import exit_code
from tests.support.wordnet import Dictionary, Meaning

WORDNET = Dictionary(
    [
        Meaning(["entity"], "noun.Tops"),
        Meaning(["person:6833"], "noun.Tops", ["entity"]),
        Meaning(["man:749"], "noun.person", ["person"]),
        Meaning(["woman:143"], "noun.person", ["person"]),
        Meaning(["dog:42"], "noun.animal", ["entity"]),
        Meaning(["puppy"], "noun.animal", ["dog"]),
        Meaning(["couch:5", "sofa:5"], "noun.artifact", ["entity"]),
        Meaning(["tennis racket"], "noun.artifact", ["entity"]),
        Meaning(["idea:60"], "noun.cognition", ["entity"]),
        Meaning(["zebra"], "noun.animal", ["entity"]),
        Meaning(["front:9"], "noun.location", ["entity"]),
    ],
    exceptions={"men": "man", "women": "woman"},
)
TEXTS = [
    ["Two men and a dog on a couch", "a person with a puppy on the sofa"],
    ["a woman holds tennis rackets in front of a dog", "a person & <b>a dog</b>"],
    ["the dog has an idea", "dogs on a couch with a tennis racket"],
]


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    return WORDNET.write(tmp_path_factory.mktemp("wordnet"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six photos in two shards, parsed by the real pipeline, and a sample that cannot be read."""
    folder = tmp_path_factory.mktemp("shards")
    groups = [list(pipeline().annotate(texts)) for texts in TEXTS]
    for name in ("a", "b"):
        write_shard(folder / f"{name}.tar", [sample(i, group) for i, group in enumerate(groups)], PIPELINE)
    write_tar(folder / "c.tar", [("x.json", annotation())])
    return folder


def entries(path):
    return {entry.name: entry.synonyms for entry in read_entries(path)}


def run(monkeypatch, shards, wordnet, target, *more):
    arguments = [f"captions={shards}", f"propose={target}", f"wordnet={wordnet}", "min_count=2", *more]
    return exit_code(program.main, arguments, monkeypatch)


def test_a_bank_is_proposed_and_loads(shards, wordnet, tmp_path, monkeypatch, capsys):
    target = tmp_path / "new" / "bank.txt"
    assert run(monkeypatch, shards, wordnet, target) == 0
    assert entries(target) == {
        "dog": (),
        "couch": ("sofa",),
        "person": ("man", "woman"),
        "puppy": (),
        "tennis racket": (),
    }
    printed = " ".join(capsys.readouterr().out.split())
    assert "12 captions, 100.0 % with a concept" in printed
    assert "5 concepts, 8 words" in printed and "skipped 1 unreadable samples" in printed
    assert "0 of 5 names never match: none" in printed


def test_the_file_says_how_it_was_made(shards, wordnet, tmp_path, monkeypatch):
    target = tmp_path / "bank.txt"
    assert run(monkeypatch, shards, wordnet, target, "exclude=[voc20]", "size=7") == 0
    header = [line for line in target.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert "12 captions of 6 photos" in header[0]
    text = "\n".join(header)
    for part in (
        f"captions: {shards}", "size=7 min_count=2 synonym_count=2 max_words=1000000", "surface_forms: true",
        "wordnet: version 9.9", "fold: [person]", "stop: concepts/stop.txt (sha256 ", "exclude: [voc20]",
    ):  # fmt: skip
        assert part in text


def test_equal_input_gives_equal_files(shards, wordnet, tmp_path, monkeypatch):
    for name in ("first", "second"):
        assert run(monkeypatch, shards, wordnet, tmp_path / name, f"report={tmp_path}/{name}.html") == 0
    for suffix in ("", ".html"):
        assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"second{suffix}").read_bytes()


def test_excluded_classes_leave_no_trace_in_the_bank(shards, wordnet, tmp_path, monkeypatch):
    target = tmp_path / "bank.txt"
    assert run(monkeypatch, shards, wordnet, target, "exclude=[voc20]") == 0
    # voc20 has dog, person and sofa: the couch goes with its synonym.
    assert entries(target) == {"puppy": (), "tennis racket": ()}


def test_words_of_the_stop_list_are_left_out(shards, wordnet, tmp_path, monkeypatch):
    (tmp_path / "stop.txt").write_text("Dog, puppy # two\n\n  tennis   racket, dog\n", encoding="utf-8")
    assert read_stop(tmp_path / "stop.txt") == {"dog", "puppy", "tennis racket"}
    target = tmp_path / "bank.txt"
    assert run(monkeypatch, shards, wordnet, target, f"stop={tmp_path}/stop.txt") == 0
    assert entries(target).keys() == {"couch", "front", "person"}


def test_without_wordnet_numbers_and_compounds_only(shards, tmp_path, monkeypatch):
    target = tmp_path / "bank.txt"
    assert run(monkeypatch, shards, "none", target) == 0
    found = entries(target)
    assert found.keys() == {"dog", "couch", "sofa", "person", "man", "woman", "puppy", "tennis racket"}
    assert "# wordnet: none\n# fold: nothing" in target.read_text(encoding="utf-8")


def test_fold_can_be_turned_off(shards, wordnet, tmp_path, monkeypatch):
    assert run(monkeypatch, shards, wordnet, tmp_path / "bank.txt", "fold=[]") == 0
    assert {"man", "woman", "person"} <= entries(tmp_path / "bank.txt").keys()


def test_output_is_the_coverage_of_the_proposed_bank(shards, wordnet, tmp_path, monkeypatch):
    assert run(monkeypatch, shards, wordnet, tmp_path / "bank.txt", f"output={tmp_path}/new.json") == 0
    arguments = [f"captions={shards}", f"bank={tmp_path}/bank.txt", f"output={tmp_path}/old.json"]
    assert exit_code(program.main, arguments, monkeypatch) == 0
    new, old = (json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) for name in ("new", "old"))
    assert new == old and new["captions_with_concept_percent"] == 100


def test_the_curve_is_the_coverage_of_each_smaller_bank(shards, wordnet, tmp_path, monkeypatch):
    curves = []
    write = propose.write_bank_report

    def keep(path, mined, *rest):
        from data_prep.bank.report import coverage_curve

        curves.append(coverage_curve(mined))
        write(path, mined, *rest)

    monkeypatch.setattr(propose, "write_bank_report", keep)
    assert run(monkeypatch, shards, wordnet, tmp_path / "bank.txt", f"report={tmp_path}/bank.html") == 0
    for size in range(1, 6):
        more = [f"size={size}", f"output={tmp_path}/{size}.json"]
        assert run(monkeypatch, shards, wordnet, tmp_path / f"{size}.txt", *more) == 0
        report = json.loads((tmp_path / f"{size}.json").read_text(encoding="utf-8"))
        for name, key in (("captions with a concept", "captions_with"), ("noun concepts in the bank", "mentions_in")):
            (percent,) = (report[other] for other in report if other.startswith(key))
            assert curves[0].series[name][1][size - 1] == pytest.approx(percent)


def test_report_shows_examples_merges_drops_and_the_shipped_banks(shards, wordnet, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("unicorn\n", encoding="utf-8")
    more = [f"report={tmp_path}/bank.html", f"bank={tmp_path}/mine.txt"]
    assert run(monkeypatch, shards, wordnet, tmp_path / "bank.txt", *more) == 0
    page = (tmp_path / "bank.html").read_text(encoding="utf-8")
    assert "the <mark>dog</mark> has an idea" in page or "Two men and a <mark>dog</mark> on a couch" in page
    assert "<mark>tennis rackets</mark> in front of a dog" in page
    for name in ("proposed", "benchmarks", "everyday", "mine"):
        assert f'<th scope="row">{name}</th>' in page
    assert '<th scope="row">man</th>' in page  # folded
    assert 'idea <span class="muted">2</span>' in page and 'front <span class="muted">2</span>' in page


def test_examples_are_escaped_and_differ(wordnet, tmp_path, monkeypatch):
    photos = [[caption("<i>a dog</i>", "dog"), caption("a Dog", "Dog")], [caption("a dog again", "dog")]]
    photos += [[caption("the DOG", "DOG")], [Caption("puppies", (Concept("puppies", "dog", 0, 7),))]]
    write_shard(tmp_path / "s.tar", [sample(i, group) for i, group in enumerate(photos)], PIPELINE)
    report = tmp_path / "bank.html"
    assert run(monkeypatch, tmp_path / "s.tar", wordnet, tmp_path / "bank.txt", f"report={report}") == 0
    page = report.read_text(encoding="utf-8")
    assert "&lt;i&gt;a <mark>dog</mark>&lt;/i&gt;" in page and "<i>a" not in page
    assert page.count("<mark>") == 2 and "<mark>puppies</mark>" in page


def test_surface_forms_can_be_turned_off(wordnet, tmp_path, monkeypatch):
    photos = [[Caption("couches", (Concept("couches", "couch", 0, 7),))]] * 12
    write_shard(tmp_path / "s.tar", [sample(i, group) for i, group in enumerate(photos)], PIPELINE)
    for value, words in (("true", {"couches": ("couch",)}), ("false", {"couch": ()})):
        target = tmp_path / f"{value}.txt"
        assert run(monkeypatch, tmp_path / "s.tar", wordnet, target, f"surface_forms={value}") == 0
        assert entries(target) == words


def test_forgotten_nouns_are_reported(shards, wordnet, tmp_path, monkeypatch, capsys):
    more = ["max_words=4", f"report={tmp_path}/bank.html"]
    assert run(monkeypatch, shards, wordnet, tmp_path / "bank.txt", *more) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "max_words=4: " in printed and "mentions of rare nouns were forgotten" in printed
    page = (tmp_path / "bank.html").read_text(encoding="utf-8")
    assert "<dt>mentions of forgotten nouns</dt><dd>0</dd>" not in page


def test_shards_of_failed_tasks_are_named(shards, wordnet, tmp_path, monkeypatch, capsys):
    """Whether a bank is proposed from them or its coverage measured."""
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    for failed in ({"in.tar": "No space left on device"}, {}):
        record = {"complete": not failed, "failed": failed, "shards": []}
        (folder / "index.json").write_text(json.dumps(record), encoding="utf-8")
        assert run(monkeypatch, folder, wordnet, tmp_path / "bank.txt") == 0
        assert exit_code(program.main, [f"captions={folder}", f"bank={tmp_path}/bank.txt"], monkeypatch) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("incomplete shards: ")]
        assert len(said) == 2 * len(failed) and all(f"{folder} (failed tasks: 1)" in line for line in said)


def test_captions_can_be_read_again_and_leave_no_file(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Captions(find_shards(str(shards))) as corpus:
        first, second = list(corpus), list(corpus)
    assert first == second and len(first) == 6 and (corpus.count, corpus.skipped) == (12, 1)
    assert [found.text for found in first[0]] == TEXTS[0]
    assert list(tmp_path.iterdir()) == []


def test_shipped_stop_list():
    stop = read_stop(program.find_file("concepts/stop.txt"))
    assert {"front", "group", "day", "picture", "they", "red", "lot", "background", "view"} <= stop
    assert not {"dog", "street", "shadow", "sky", "people", "building", "tank top"} & stop


def test_proposed_bank_matches_as_training_matches(shards, wordnet, tmp_path, monkeypatch):
    assert run(monkeypatch, shards, wordnet, tmp_path / "bank.txt") == 0
    bank = ConceptBank.from_file(tmp_path / "bank.txt", surface_forms=True)
    (annotated,) = pipeline().annotate(["two women sit with their dogs on the sofa"])
    assert [bank.names[bank.lookup(concept)] for concept in annotated.concepts] == ["person", "dog", "couch"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["size=0"], "size=0"),
        (["min_count=0"], "min_count=0"),
        (["synonym_count=-1"], "synonym_count=-1"),
        (["max_words=0"], "max_words=0"),
        (["min_count=1000"], "min_count=1000"),
        (["fold=[blorp]"], "blorp"),
        (["stop=gone.txt"], "gone.txt"),
        (["exclude=[voc22]"], "voc20"),
        (["wordnet={tmp}"], "data.noun"),
        (["wordnet=null"], "nltk.downloader"),
        (["propose={tmp}/file/bank.txt"], "propose={tmp}/file/bank.txt"),
        (["report={tmp}/file/bank.html"], "report={tmp}/file/bank.html"),
        (["report={tmp}/bank.html", "bank=gone.txt"], "gone.txt"),
        (["captions={tmp}/c.tar"], "holds no"),
        (["captions={tmp}/empty.tar"], "no annotated caption"),
    ],
)
def test_bad_input_is_one_line(shards, wordnet, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.setattr(nltk.data, "path", [str(wordnet)])
    (tmp_path / "file").write_text("", encoding="utf-8")
    write_tar(tmp_path / "c.tar", [("x.json", annotation())])
    write_shard(tmp_path / "empty.tar", [sample(0, [])], PIPELINE)
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    assert run(monkeypatch, shards, wordnet, tmp_path / "bank.txt", *filled) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert says.format(tmp=tmp_path) in error
