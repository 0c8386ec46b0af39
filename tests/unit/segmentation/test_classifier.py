"""Class names to weights, and cosines to labels."""

import numpy as np
import pytest
import torch

from simzss.data.settings import Background
from simzss.segmentation.classifier import Classifier, build_classifier, parse_classes
from simzss.segmentation.prompts import embed_names, templates
from tests.support.models import refused, scratch_model

NAMES = ("cat", "dog", "tree", "car")
WORDS = ["sky", "wall"]
THRESHOLD = Background(kind="threshold", threshold=0.4)
TEMPERATURE = 0.07


def build(classes, background: Background | None = None, merge: str = "mean") -> Classifier:
    options = {"template_set": "photo", "text_pooling": "tokens", "temperature": TEMPERATURE, "merge": merge}
    return build_classifier(scratch_model(), classes, background=background or Background(), **options)


def vectors(*names: str) -> np.ndarray:
    return embed_names(scratch_model(), names, templates("photo"), "tokens").double().numpy()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows**2).sum(axis=-1, keepdims=True))


# Names to weights -------------------------------------------------------------------------------------------------


def test_a_class_is_the_normalised_mean_of_its_names():
    found = build([["cat", "kitten", "kitty"], "dog", (" tree", "\toak\n"), "green   grass "])
    assert found.names == ("cat", "dog", "tree", "green grass")
    assert found.rows == (("cat", "kitten", "kitty"), ("dog",), ("tree", "oak"), ("green grass",))
    cat, kitten, kitty, dog, tree, oak, grass = vectors("cat", "kitten", "kitty", "dog", "tree", "oak", "green grass")
    expected = [unit((cat + kitten + kitty) / 3), dog, unit((tree + oak) / 2), grass]
    np.testing.assert_allclose(found.weights.numpy(), np.stack(expected), rtol=0, atol=1e-5)
    assert np.abs(found.weights[0].numpy() - cat).max() > 0.01


def test_background_words_come_after_the_classes():
    found = build([["cat", "kitten"], "dog"], Background(kind="words", words=WORDS))
    assert found.names == ("background", "cat", "dog")
    cat, kitten, dog, sky, wall = vectors("cat", "kitten", "dog", *WORDS)
    expected = np.stack([unit((cat + kitten) / 2), dog, sky, wall])
    np.testing.assert_allclose(found.weights.numpy(), expected, rtol=0, atol=1e-5)
    by_threshold = build(NAMES, THRESHOLD)  # which has no vector
    assert by_threshold.names == ("background", *NAMES) and by_threshold.weights.shape == (4, 64)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("cat", [("cat",)]),
        ("cat,dog", [("cat",), ("dog",)]),
        (" cat / kitten , dog ,, ", [("cat", "kitten"), ("dog",)]),
        (["cat/kitten", "dog"], [("cat", "kitten"), ("dog",)]),
        ([["cat", "1/2 cat"], ("dog",)], [("cat", "1/2 cat"), ("dog",)]),  # lists of names are taken as they are
        (
            {"cat": ["kitten", "kitty"], "dog": [], "cow": "calf/ox"},
            [("cat", "kitten", "kitty"), ("dog",), ("cow", "calf", "ox")],
        ),
    ],
)
def test_classes_in_every_form(classes, expected):
    assert parse_classes(classes) == expected


@pytest.mark.parametrize("classes", ["", " , ,", [], [""], {}])
def test_no_classes(classes):
    refused(lambda: parse_classes(classes), "classes is empty")


@pytest.mark.parametrize(
    ("classes", "parts"),
    [
        (["cat", ""], ["empty name", "cat"]),
        (["cat", "  \t"], ["empty name"]),
        (["cat", []], ["empty name"]),
        ([["cat", ""]], ["empty name"]),
        (["cat", "dog", "cat"], ["'cat'", "twice"]),
        ([["cat", "kitten"], "dog", "  cat "], ["'cat'", "twice"]),
        (["cat", "very " * 60 + "long"], ["too long", "16 tokens"]),
    ],
)
def test_refused(classes, parts):
    refused(lambda: build(classes), *parts)


@pytest.mark.parametrize("word", ["", "   ", "very " * 60])
def test_background_words_are_checked_too(word):
    refused(lambda: build(NAMES, Background(kind="words", words=["sky", word])), "empty")


@pytest.mark.parametrize("background", [THRESHOLD, Background(kind="words", words=WORDS)], ids=["threshold", "words"])
def test_class_named_background(background):
    refused(lambda: build(["background", "cat"], background), "background")


# Cosines to labels ------------------------------------------------------------------------------------------------


def cosines(count: int, seed: int = 0) -> np.ndarray:
    """(count, 9, 11) cosines whose best probability is now below, now above any threshold."""
    random = np.random.default_rng(seed)
    spread = random.uniform(0.0, 0.3, (1, 9, 11))
    return random.uniform(-1, 1, (count, 9, 11)) * spread


def classifier(count: int, background: Background) -> Classifier:
    names = tuple(f"class {i}" for i in range(count))
    names = ("background", *names) if background.present else names
    rows = count + len(background.words)
    return Classifier(names, torch.eye(rows, 16), (1,) * rows, background, TEMPERATURE)


def test_similarity_is_the_best_cosine_of_a_class():
    patches = unit(np.random.default_rng(0).normal(size=(2, 5, 64)))
    flat = patches @ vectors("cat", "kitten", "dog", *WORDS).T
    rule = Background(kind="words", words=WORDS)
    for classes, merge, expected in (
        ("cat,kitten,dog", "mean", flat),
        ("cat/kitten,dog", "max", np.concatenate([flat[..., :2].max(axis=-1, keepdims=True), flat[..., 2:]], axis=-1)),
    ):
        found = build(classes, rule, merge=merge).similarity(torch.tensor(patches).float())
        np.testing.assert_allclose(found.numpy(), expected.transpose(0, 2, 1), rtol=0, atol=1e-5)


def by_rule(cosines: np.ndarray, count: int, background: Background) -> tuple[int, list[float]]:
    """Label and logits of one pixel, from its cosines with some classes and the background words, in float64."""
    scaled = cosines / TEMPERATURE
    logits = scaled - np.log(np.exp(scaled).sum()) if background.has_threshold else scaled
    if not background.present:
        return int(logits.argmax()), list(logits)
    rivals = [*logits[count:], *([np.log(background.threshold)] if background.has_threshold else [])]
    best = int(logits.argmax())
    away = best >= count or (background.has_threshold and np.exp(logits[best]) < background.threshold)
    return 0 if away else best + 1, [max(rivals), *logits[:count]]


RULES = [
    Background(),
    *(Background(kind="threshold", threshold=value) for value in (0.3, 0.5, 0.9)),
    Background(kind="words", words=WORDS),
    Background(kind="both", threshold=0.4, words=WORDS),
]


@pytest.mark.parametrize("background", RULES)
def test_labels_and_logits_follow_the_rule(background):
    """The threshold is on the best probability; the best background word goes to class 0."""
    given, found = cosines(4 + len(background.words)), classifier(4, background)
    logits, labels = found.logits(torch.tensor(given)), found.decide(torch.tensor(given).float())
    assert logits.dtype == torch.float32 and torch.equal(labels, logits.argmax(dim=0))
    for y in range(9):
        for x in range(11):
            label, expected = by_rule(given[:, y, x], 4, background)
            assert labels[y, x] == label
            assert logits[:, y, x].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert len(labels.unique()) >= 4 and (not background.present or 5 < (labels == 0).sum() < 97)
    if found.prunable:  # rows that win nowhere may be left out
        rows = torch.tensor(given).flatten(1).argmax(dim=0).unique()
        assert torch.equal(found.decide(torch.tensor(given[rows]).float(), rows), labels)
