import sys

import pytest
import spacy
from spacy.tokens import Doc

from simzss.concepts.extract import extract_concepts, lower_same_length
from tests.support.language import pipeline

# A word of a hand-made parse: text, index of its head, dependency, part of speech, lemma.
Word = tuple[str, int, str, str, str]
VOCAB = spacy.blank("en").vocab


def parse(caption: str, words: list[Word]) -> Doc:
    """A parse of the caption's lower case, as the pipeline would give it; the words must fill the caption."""
    lowered = lower_same_length(caption)
    texts, spaces, at = [], [], 0
    for text, *_ in words:
        assert lowered.startswith(text, at), (text, lowered[at:])
        at += len(text)
        texts.append(text)
        spaces.append(lowered.startswith(" ", at))
        at += spaces[-1]
    assert at == len(caption)
    _, heads, deps, pos, lemmas = zip(*words, strict=True)
    tags = ["NN" if part == "NOUN" else "XX" for part in pos]
    return Doc(
        VOCAB,
        words=texts,
        spaces=spaces,
        heads=list(heads),
        deps=list(deps),
        pos=list(pos),
        lemmas=list(lemmas),
        tags=tags,
    )


def found(caption: str, words: list[Word]) -> list[tuple[str, str, int]]:
    concepts = list(extract_concepts(parse(caption, words), caption))
    for concept in concepts:
        assert concept.text == caption[concept.start : concept.end]
    return [(concept.text, concept.lemma, concept.start) for concept in concepts]


def test_noun_without_compound_is_its_root():
    words = [
        ("two", 2, "nummod", "NUM", "two"),
        ("brown", 2, "amod", "ADJ", "brown"),
        ("dogs", 3, "nsubj", "NOUN", "dog"),
        ("sleep", 3, "ROOT", "VERB", "sleep"),
    ]
    assert found("two brown dogs sleep", words) == [("dogs", "dog", 10)]


def test_compound_before_its_root_keeps_its_form_and_the_root_its_lemma():
    words = [
        ("(", 3, "punct", "PUNCT", "("),
        ("two", 3, "nummod", "NUM", "two"),
        ("skis", 3, "compound", "NOUN", "ski"),
        ("poles", 3, "ROOT", "NOUN", "pole"),
        ("!", 3, "punct", "PUNCT", "!"),
        (")", 3, "punct", "PUNCT", ")"),
    ]
    assert found("(two skis poles!)", words) == [("skis poles", "skis pole", 5)]


def test_accents_count_as_one_character_each():
    words = [
        ("é", 2, "dep", "X", "é"),
        ("café", 2, "compound", "NOUN", "café"),
        ("tables", 2, "ROOT", "NOUN", "table"),
        ("à", 2, "prep", "ADP", "à"),
        ("pâtés", 3, "pobj", "NOUN", "pâté"),
    ]
    assert found("É Café tables à Pâtés", words) == [("Café tables", "café table", 2), ("Pâtés", "pâté", 16)]


def test_noun_that_stands_twice_is_two_mentions():
    words = [
        ("a", 1, "det", "DET", "a"),
        ("dog", 1, "ROOT", "NOUN", "dog"),
        ("and", 1, "cc", "CCONJ", "and"),
        ("a", 4, "det", "DET", "a"),
        ("dog", 1, "conj", "NOUN", "dog"),
    ]
    assert found("a dog and a dog", words) == [("dog", "dog", 2), ("dog", "dog", 12)]


def test_last_of_several_compounds_is_taken():
    words = [
        ("the", 3, "det", "DET", "the"),
        ("fire", 3, "compound", "NOUN", "fire"),
        ("truck", 3, "compound", "NOUN", "truck"),
        ("doors", 3, "ROOT", "NOUN", "door"),
    ]
    assert found("the fire truck doors", words) == [("truck doors", "truck door", 9)]


def test_compound_of_a_compound_is_left_out():
    words = [
        ("kitchen", 1, "compound", "NOUN", "kitchen"),
        ("table", 2, "compound", "NOUN", "table"),
        ("legs", 2, "ROOT", "NOUN", "leg"),
    ]
    assert found("Kitchen table legs", words) == [("table legs", "table leg", 8)]


def test_what_stands_between_compound_and_root_is_in_the_text_and_not_in_the_lemma():
    words = [
        ("stone", 3, "compound", "NOUN", "stone"),
        (",", 3, "punct", "PUNCT", ","),
        ("old", 3, "amod", "ADJ", "old"),
        ("walls", 3, "ROOT", "NOUN", "wall"),
    ]
    assert found("stone, old walls", words) == [("stone, old walls", "stone wall", 0)]


def test_compound_after_its_root():
    words = [
        ("tennis", 0, "ROOT", "NOUN", "tennis"),
        (",", 0, "punct", "PUNCT", ","),
        ("table", 0, "compound", "NOUN", "table"),
        (".", 0, "punct", "PUNCT", "."),
    ]
    assert found("Tennis, Table.", words) == [("Tennis, Table", "table tennis", 0)]


def test_other_children_of_the_root_are_no_compounds():
    words = [
        ("wooden", 2, "amod", "ADJ", "wooden"),
        ("garden", 2, "nmod", "NOUN", "garden"),
        ("chairs", 2, "ROOT", "NOUN", "chair"),
    ]
    assert found("wooden garden chairs", words) == [("chairs", "chair", 14)]


def test_noun_outside_every_chunk_is_no_concept():
    words = [
        ("run", 0, "ROOT", "VERB", "run"),
        ("all", 2, "det", "DET", "all"),
        ("day", 0, "npadvmod", "NOUN", "day"),
    ]
    assert found("run all day", words) == []


def test_upper_case_is_kept_in_the_text_and_lowered_in_the_lemma():
    words = [
        ("a", 2, "det", "DET", "a"),
        ("stop", 2, "compound", "NOUN", "stop"),
        ("signs", 2, "ROOT", "NOUN", "Sign"),
    ]
    assert found("A STOP SIGNS", words) == [("STOP SIGNS", "stop sign", 2)]


def test_offsets_hold_behind_a_character_with_a_longer_lower_case():
    words = [
        ("İzmİr", 1, "compound", "PROPN", "İzmİr"),
        ("dogs", 1, "ROOT", "NOUN", "dog"),
        ("İ", 1, "punct", "PUNCT", "İ"),
        ("cats", 1, "conj", "NOUN", "cat"),
    ]
    assert found("İZMİR DOGS İ CATS", words)[1] == ("CATS", "cat", 13)
    assert found("İZMİR DOGS İ CATS", words)[0][::2] == ("İZMİR DOGS", 0)


def test_no_concept_in_an_empty_caption():
    assert list(extract_concepts(Doc(VOCAB, words=[]), "")) == []


def test_lower_same_length_over_all_characters():
    text = "".join(chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    lowered = lower_same_length(text)
    assert len(lowered) == len(text)
    changed = [(char, lower) for char, lower in zip(text, lowered, strict=True) if lower != char.lower()]
    assert changed == [("İ", "İ")]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("two tennis rackets on a table", [("tennis rackets", "tennis racket"), ("table", "table")]),
        ("A Brown Dog chases two cats.", [("Dog", "dog"), ("cats", "cat")]),
        ("Café tables outside a café.", [("Café tables", "café table"), ("café", "café")]),
        ("a dog and a dog", [("dog", "dog"), ("dog", "dog")]),
        ("The woman's hand holds a cell phone!", [("hand", "hand"), ("cell phone", "cell phone")]),
        (
            "a baseball bat, a glove; and three balls",
            [("baseball bat", "baseball bat"), ("glove", "glove"), ("balls", "ball")],
        ),
        ("THREE ELEPHANTS IN A ZOO", [("ELEPHANTS", "elephant"), ("ZOO", "zoo")]),
        ("running fast", []),
    ],
)
def test_real_pipeline(caption, expected):
    (annotated,) = pipeline().annotate([caption])
    assert [(concept.text, concept.lemma) for concept in annotated.concepts] == expected
    assert all(concept.text == caption[concept.start : concept.end] for concept in annotated.concepts)


def test_real_pipeline_tells_repeated_nouns_apart_by_place():
    (annotated,) = pipeline().annotate(["a dog and a dog"])
    assert [concept.start for concept in annotated.concepts] == [2, 12]
