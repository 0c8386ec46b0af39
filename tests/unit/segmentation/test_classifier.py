import numpy as np
import pytest
import torch

from simzss.models.simzss import SimZSS
from simzss.segmentation.background import Background
from simzss.segmentation.classifier import Classifier, build_classifier
from simzss.segmentation.prompts import embed_names, templates
from tests.support.models import refused, scratch_model

NAMES = ("cat", "dog", "tree", "car")
WORDS = ("sky", "wall")
THRESHOLD = Background("threshold", threshold=0.4)
TEMPERATURE = 0.07


def build(classes, background: Background | None = None, readout: str = "concept", model: SimZSS | None = None):
    return build_classifier(
        model or scratch_model(),
        classes,
        background=background or Background(),
        template_set="photo",
        readout=readout,
        temperature=TEMPERATURE,
    )


def vectors(*names: str) -> np.ndarray:
    return embed_names(scratch_model(), names, templates("photo"), "concept").double().numpy()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows**2).sum(axis=-1, keepdims=True))


# Names to weights -------------------------------------------------------------------------------------------------


def test_one_name_a_class():
    found = build(NAMES)
    assert found.names == NAMES
    np.testing.assert_allclose(found.weights.numpy(), vectors(*NAMES), rtol=0, atol=1e-6)


def test_several_names_are_the_normalised_mean():
    found = build([["cat", "kitten", "kitty"], "dog", ("tree", "oak")])
    assert found.names == ("cat", "dog", "tree")
    cat, kitten, kitty, dog, tree, oak = vectors("cat", "kitten", "kitty", "dog", "tree", "oak")
    expected = [unit((cat + kitten + kitty) / 3), dog, unit((tree + oak) / 2)]
    np.testing.assert_allclose(found.weights.numpy(), np.stack(expected), rtol=0, atol=1e-5)
    assert np.abs(found.weights[0].numpy() - cat).max() > 0.01


def test_background_words_come_after_the_classes():
    found = build([["cat", "kitten"], "dog"], Background("words", words=WORDS))
    assert found.names == ("background", "cat", "dog")
    cat, kitten, dog, sky, wall = vectors("cat", "kitten", "dog", *WORDS)
    expected = np.stack([unit((cat + kitten) / 2), dog, sky, wall])
    np.testing.assert_allclose(found.weights.numpy(), expected, rtol=0, atol=1e-5)


def test_background_by_threshold_has_no_vector():
    found = build(NAMES, THRESHOLD)
    assert found.names == ("background", *NAMES)
    assert found.weights.shape == (4, 64)


def test_white_space_does_not_matter():
    found = build([" green   grass ", "\tdog\n"])
    assert found.names == ("green grass", "dog")
    np.testing.assert_allclose(found.weights.numpy(), vectors("green grass", "dog"), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "parts"),
    [
        ([], ["class list is empty"]),
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
    refused(lambda: build(NAMES, Background("words", words=("sky", word))), "empty")


@pytest.mark.parametrize("background", [THRESHOLD, Background("words", words=WORDS)], ids=["threshold", "words"])
def test_class_named_background(background):
    refused(lambda: build(["background", "cat"], background), "background")


def test_a_text_is_no_list():
    refused(lambda: build("cat"), "cat")


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


def test_similarity_is_the_cosine():
    found = build(NAMES)
    random = np.random.default_rng(0)
    patches = unit(random.normal(size=(2, 5, 64)))
    similarity = found.similarity(torch.tensor(patches).float())
    assert similarity.shape == (2, 4, 5)
    for b in range(2):
        for k, name in enumerate(NAMES):
            for n in range(5):
                expected = (patches[b, n] * vectors(name)[0]).sum()
                assert similarity[b, k, n].item() == pytest.approx(expected, abs=1e-5)


def test_without_background():
    given = cosines(4)
    logits = classifier(4, Background()).logits(torch.tensor(given))
    np.testing.assert_allclose(logits.numpy(), given / TEMPERATURE, rtol=1e-5)
    assert logits.dtype == torch.float32
    assert (logits.argmax(dim=0).numpy() == given.argmax(axis=0)).all()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_threshold_is_on_the_best_probability(threshold):
    given = cosines(4)
    logits = classifier(4, Background("threshold", threshold=threshold)).logits(torch.tensor(given))
    assert logits.shape == (5, 9, 11)
    labels = logits.argmax(dim=0).numpy()
    backgrounds = 0
    for y in range(9):
        for x in range(11):
            scores = [np.exp(cosine / TEMPERATURE) for cosine in given[:, y, x]]
            probabilities = [score / sum(scores) for score in scores]
            expected = 0 if max(probabilities) < threshold else 1 + probabilities.index(max(probabilities))
            assert labels[y, x] == expected, (y, x, probabilities)
            for k in range(4):
                assert logits[k + 1, y, x].item() == pytest.approx(np.log(probabilities[k]), abs=1e-4)
            backgrounds += expected == 0
    assert 5 < backgrounds < 94  # both sides of the rule occur
    np.testing.assert_allclose(logits[0].numpy(), np.log(threshold), rtol=1e-5)


def test_best_background_word_goes_to_class_0():
    given = cosines(5)  # three classes and two words
    logits = classifier(3, Background("words", words=WORDS)).logits(torch.tensor(given))
    assert logits.shape == (4, 9, 11)
    seen = set()
    for y in range(9):
        for x in range(11):
            one = list(given[:, y, x])
            best = one.index(max(one))
            expected = 0 if best >= 3 else best + 1
            assert logits[:, y, x].argmax().item() == expected
            assert logits[0, y, x].item() == pytest.approx(max(one[3], one[4]) / TEMPERATURE, rel=1e-4)
            assert logits[1:, y, x].tolist() == pytest.approx([value / TEMPERATURE for value in one[:3]], rel=1e-4)
            seen.add(best)
    assert seen == {0, 1, 2, 3, 4}


BOTH = Background("both", threshold=0.4, words=WORDS)


@pytest.mark.parametrize("background", [Background(), THRESHOLD, Background("words", words=WORDS), BOTH])
def test_decisions_are_the_argmax_of_the_logits(background):
    found = classifier(4, background)
    given = torch.tensor(cosines(4 + len(background.words), seed=3)).float()
    labels = found.decide(given)
    assert torch.equal(labels, found.logits(given).argmax(dim=0))
    assert len(labels.unique()) >= 4
    if found.prunable:
        rows = torch.arange(len(given))[given.flatten(1).amax(dim=1) > 0.1]
        assert torch.equal(found.decide(given[rows], rows), labels) or len(rows) < len(given)


def test_words_and_threshold():
    given = torch.tensor(cosines(6, seed=5)).float()
    labels = classifier(4, BOTH).decide(given)
    probability = (given / TEMPERATURE).softmax(dim=0)
    best, row = probability.max(dim=0)
    assert torch.equal(labels, torch.where((row >= 4) | (best < 0.4), 0, row + 1))
    assert ((row >= 4) & (best > 0.4)).any() and ((row < 4) & (best < 0.4)).any()


def test_several_vectors_of_a_class_score_as_their_best():
    found = build_classifier(
        scratch_model(),
        [["cat", "kitten"], "dog"],
        background=Background("words", words=WORDS),
        template_set="photo",
        readout="concept",
        temperature=TEMPERATURE,
        merge="max",
    )
    patches = torch.nn.functional.normalize(torch.randn(1, 7, 64), dim=-1)
    similarity = found.similarity(patches)[0].double().numpy()
    flat = vectors("cat", "kitten", "dog", *WORDS) @ patches[0].double().numpy().T
    np.testing.assert_allclose(similarity, np.stack([flat[:2].max(axis=0), *flat[2:]]), rtol=0, atol=1e-5)
