import pytest

from simzss.concepts.bank import ConceptBank, Entry, read_entries
from simzss.concepts.concept import Concept
from simzss.concepts.leakage import excluded_words
from simzss.errors import InputError
from simzss.settings.compose import CONF_DIR


def write(tmp_path, text: str | bytes):
    path = tmp_path / "bank.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def mention(text: str, lemma: str) -> Concept:
    return Concept(text, lemma, 0, len(text))


def test_names_synonyms_comments_and_spelling(tmp_path):
    path = write(tmp_path, "# head\n\nDog, Puppy ,  border   collie # of dogs\r\n  cat\t\n#end\nÉclair")
    expected = [Entry("dog", ("puppy", "border collie")), Entry("cat"), Entry("éclair")]
    assert read_entries(path) == expected


def test_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    assert read_entries(write(tmp_path, b"\xef\xbb\xbfdog\ncat\n")) == [Entry("dog"), Entry("cat")]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("dog\ncat\ndog\n", 3, ["'dog'", "line 1"]),
        ("dog, puppy\n\n# c\ncat, Puppy\n", 4, ["'puppy'", "line 1"]),
        ("dog, puppy\npuppy\n", 2, ["'puppy'", "line 1"]),
        ("cat\ndog, puppy,  dog\n", 2, ["'dog'", "line 2"]),
        ("cell phone\nphone, cell  phone\n", 2, ["'cell phone'", "line 1"]),
        ("cat\n, dog\n", 2, ["empty"]),
        ("cat\ndog, , puppy # why\n", 2, ["empty"]),
        ("cat,\n", 1, ["empty"]),
    ],
)
def test_wrong_line_is_named(tmp_path, text, line, says):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_entries(path)
    message = str(caught.value)
    assert f"{path}:{line}:" in message
    assert all(part in message for part in says), message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "\n \n", "# only\n  # comments\n"])
def test_no_entries(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match="no entries") as caught:
        read_entries(path)
    assert str(path) in str(caught.value)


def test_missing_folder_and_not_utf8(tmp_path):
    for path, says in [
        (tmp_path / "gone.txt", "does not exist"),
        (tmp_path, "cannot be read"),
        (write(tmp_path, "dog\ncaf\xe9\n".encode("latin-1")), "cannot be read"),
    ]:
        with pytest.raises(InputError, match=says) as caught:
            read_entries(path)
        assert str(path) in str(caught.value)


BANK = [Entry("dog", ("puppy",)), Entry("glass"), Entry("eyeglasses", ("glasses", "spectacles")), Entry("bat")]


def test_lookup_by_lemma():
    bank = ConceptBank(BANK)
    assert len(bank) == 4
    assert bank.names == ("dog", "glass", "eyeglasses", "bat")
    assert bank.lookup(mention("Dogs", "dog")) == 0
    assert bank.lookup(mention("puppies", "puppy")) == 0
    assert bank.lookup(mention("glasses", "glass")) == 1
    assert bank.lookup(mention("baseball bat", "baseball bat")) is None
    assert bank.lookup(mention("dog", "hot dog")) is None


def test_lookup_by_surface_form_before_lemma():
    bank = ConceptBank(BANK, surface_forms=True)
    assert bank.lookup(mention("Glasses", "glass")) == 2
    assert bank.lookup(mention("a glass", "glass")) == 1
    assert bank.lookup(mention("dogs", "dog")) == 0
    assert bank.lookup(mention("dogs", "wolf")) is None


def test_exclude_by_name_or_synonym(tmp_path):
    path = write(tmp_path, "dog, puppy\ncat\nsofa, couch\ncell phone\n")
    bank = ConceptBank.from_file(path, exclude=["Puppy", "cell   phone", "zebra"])
    assert bank.names == ("cat", "sofa")
    assert bank.lookup(mention("couch", "couch")) == 1
    assert bank.lookup(mention("dog", "dog")) is None
    assert ConceptBank.from_file(path).names == ("dog", "cat", "sofa", "cell phone")


def test_nothing_left(tmp_path):
    path = write(tmp_path, "dog, puppy\n")
    with pytest.raises(InputError, match="excluded") as caught:
        ConceptBank.from_file(path, exclude=["dog"])
    assert str(path) in str(caught.value)


def class_names(name: str) -> list[str]:
    lines = (CONF_DIR / "names" / f"{name}.txt").read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line and not line.startswith("#")]


def words(bank: ConceptBank) -> set[str]:
    return {word for entry in bank.entries for word in entry.words}


def test_leakage_words_are_the_classes_of_the_benchmarks():
    assert excluded_words([]) == []
    assert excluded_words(["voc20"]) == class_names("voc20")
    assert excluded_words(["voc21", "ade20k"]) == class_names("voc20") + class_names("ade20k")


def test_bank_without_the_classes_of_a_benchmark():
    path = CONF_DIR / "concepts" / "banks" / "everyday.txt"
    whole, kept = ConceptBank.from_file(path), ConceptBank.from_file(path, excluded_words(["voc20"]))
    assert not set(class_names("voc20")) & words(kept)
    assert "television" in words(whole) - words(kept)  # on the line of "tv monitor"
    assert set(whole.names) - set(kept.names) <= {
        entry.name for entry in whole.entries if {entry.name, *entry.synonyms} & set(class_names("voc20"))
    }
    assert len(whole) - 20 <= len(kept) < len(whole)


def test_leakage_of_an_unknown_benchmark():
    with pytest.raises(InputError, match=r"voc22.*voc20"):
        excluded_words(["ade20k", "voc22"])


def test_leakage_of_a_benchmark_that_brings_its_classes():
    with pytest.raises(InputError, match="scenes"):
        excluded_words(["scenes"])
