import random
import shutil

import nltk
import pytest

from data_prep.bank.wordnet import Sense, WordNet
from simzss.errors import InputError
from tests.support.wordnet import Dictionary, Meaning

SMALL = Dictionary(
    nouns=[
        Meaning(["entity"], "noun.Tops"),
        Meaning(["organism"], "noun.Tops", ["entity"]),
        Meaning(["person:6833"], "noun.Tops", ["organism"]),
        Meaning(["people:257"], "noun.group", ["entity"], members=["person"]),
        Meaning(["Man"], "noun.location", ["entity"]),
        Meaning(["man:749", "adult male"], "noun.person", ["person"]),
        Meaning(["pet"], "noun.animal", ["organism"]),
        Meaning(["canine"], "noun.animal", ["organism"]),
        Meaning(["dog:42", "domestic dog"], "noun.animal", ["canine", "pet"]),
        Meaning(["frump", "dog"], "noun.person", ["man"]),
        Meaning(["goose"], "noun.animal", ["organism"]),
        Meaning(["Frisbee"], "noun.artifact", ["entity"]),
        Meaning(["glass:9"], "noun.substance", ["entity"]),
        Meaning(["glasses:4", "spectacles"], "noun.artifact", ["entity"]),
        Meaning(["city"], "noun.location", ["entity"]),
        Meaning(["Paris"], "noun.location", ["city"], instance=True),
        Meaning(["tennis racket", "tennis racquet"], "noun.artifact", ["entity"]),
    ],
    verbs=["run", "splash"],
    adjectives=["red"],
    exceptions={"geese": "goose", "men": "man"},
)


@pytest.fixture
def wordnet(tmp_path):
    return WordNet(SMALL.write(tmp_path / "dict"))


def test_senses_in_order_with_their_counts(wordnet):
    assert wordnet.senses("dog") == (Sense("dog.n.01", "noun.animal", 42), Sense("frump.n.01", "noun.person", 0))
    assert wordnet.senses("domestic dog") == (Sense("dog.n.01", "noun.animal", 0),)
    assert wordnet.senses("tennis racquet") == (Sense("tennis_racket.n.01", "noun.artifact", 0),)
    assert wordnet.version == "9.9"


def test_names_give_way_to_common_nouns(wordnet):
    assert [sense.lexname for sense in wordnet.senses("man")] == ["noun.person"]
    assert [sense.lexname for sense in wordnet.senses("frisbee")] == ["noun.artifact"]
    assert wordnet.senses("paris") == ()


@pytest.mark.parametrize("word", ["dogs", "geese", "blorp", "", "domestic_dogs", "run", "dog_"])
def test_no_senses_of_what_is_not_listed_so(wordnet, word):
    assert wordnet.senses(word) == ()


def test_a_listed_plural_has_only_its_own_senses(wordnet):
    assert [sense.synset for sense in wordnet.senses("glasses")] == ["glasses.n.01"]


def test_base_forms(wordnet):
    assert wordnet.base("geese") == "goose"
    assert wordnet.base("tennis rackets") == "tennis racket"
    assert wordnet.base("glasses") == "glasses"
    assert wordnet.base("blorps") is None
    assert (wordnet.base("splashes", "v"), wordnet.base("splashing", "v")) == ("splash", "splash")
    assert wordnet.base("geese", "v") is None and wordnet.base("splashing", "n") is None


def test_other_parts_of_speech(wordnet):
    found = {word: wordnet.other_part_of_speech(word) for word in ("run", "splashes", "red", "dog", "blorp")}
    assert found == {"run": True, "splashes": True, "red": True, "dog": False, "blorp": False}


def test_members_of_a_group(wordnet):
    assert wordnet.members("people.n.01") == ("person.n.01",)
    assert wordnet.members("person.n.01") == ()


def test_kinds_are_the_shortest_ways_up(tmp_path):
    """Against a search over all paths of a random graph."""
    rng = random.Random(3)
    names = [f"w{i:02d}" for i in range(24)]
    above = {name: rng.sample(names[:i], min(i, rng.randint(0, 3))) for i, name in enumerate(names)}
    dictionary = Dictionary([Meaning([name], "noun.object", above[name]) for name in names])
    wordnet = WordNet(dictionary.write(tmp_path / "dict"))

    def paths(name):
        yield [name]
        for other in above[name]:
            for path in paths(other):
                yield [name, *path]

    for name in names:
        expected: dict[str, int] = {}
        for path in paths(name):
            end = f"{path[-1]}.n.01"
            expected[end] = min(expected.get(end, 99), len(path) - 1)
        assert wordnet.kinds(f"{name}.n.01") == expected
    assert max(max(wordnet.kinds(f"{name}.n.01").values()) for name in names) > 2


@pytest.mark.parametrize("packed", [False, True])
def test_found_where_nltk_keeps_it(tmp_path, monkeypatch, packed):
    corpora = tmp_path / "nltk_data" / "corpora"
    SMALL.write(corpora / "wordnet")
    if packed:  # as the downloader leaves it
        shutil.make_archive(str(corpora / "wordnet"), "zip", corpora, "wordnet")
        shutil.rmtree(corpora / "wordnet")
        (corpora / "wordnet.zip").chmod(0o644)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    assert WordNet().senses("dog")[0].count == 42


def refused(folder) -> str:
    with pytest.raises(InputError) as caught:
        WordNet(folder).senses("man")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_not_installed_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    message = refused(None)
    assert "python -m nltk.downloader wordnet" in message
    assert "wordnet=DIR" in message and "wordnet=none" in message


def test_a_folder_without_the_files(tmp_path):
    message = refused(tmp_path)
    assert str(tmp_path) in message and "data.noun" in message and "nltk.downloader" in message


@pytest.mark.parametrize("name", ["data.noun", "index.verb", "lexnames", "cntlist.rev", "adj.exc"])
def test_each_file_is_needed(tmp_path, name):
    folder = SMALL.write(tmp_path / "dict")
    (folder / name).unlink()
    assert f"has no {name}" in refused(folder)


def test_changed_line_ends_are_named(tmp_path):
    message = refused(SMALL.write(tmp_path / "dict", newline="\r\n"))
    assert "index.noun and data.noun do not fit together" in message and str(tmp_path) in message


@pytest.mark.parametrize("text", ["man n many 0 1 0 00000000\n", "man n 2 0 3 0 0 0\n", "man\n"])
def test_damaged_index(tmp_path, text):
    folder = SMALL.write(tmp_path / "dict")
    (folder / "index.noun").write_text(text, encoding="utf-8")
    assert "is no WordNet dict folder" in refused(folder)


def test_a_file_that_others_may_write_is_refused_by_name(tmp_path):
    folder = SMALL.write(tmp_path / "dict")
    (folder / "data.noun").chmod(0o666)
    message = refused(folder)
    assert "data.noun" in message and "cannot be read" in message
