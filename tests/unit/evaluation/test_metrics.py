import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from simzss.evaluation.metrics import (
    ConfusionMatrix,
    Scores,
    SeenScores,
    class_counts,
    count_pixels,
    largest_confusions,
    mious,
    scores,
    seen_scores,
)

K = 6
NAMES = tuple(f"class {i}" for i in range(K))


def labels(seed: int, shape=(3, 20, 17), classes=range(K), ignore: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Random prediction and target; the prediction is right more often than by chance, some of the target is 255."""
    rng = np.random.default_rng(seed)
    target = rng.choice(list(classes), shape)
    prediction = np.where(rng.random(shape) < 0.5, target, rng.choice(list(classes), shape))
    return prediction, np.where(rng.random(shape) < ignore, 255, target)


def by_hand(prediction: np.ndarray, target: np.ndarray) -> Scores:
    """IoU as intersection over union of pixel sets, class by class."""
    valid = target != 255
    ious = []
    for k in range(K):
        union = valid & ((prediction == k) | (target == k))
        intersection = valid & (prediction == k) & (target == k)
        ious.append(100 * intersection.sum() / union.sum() if union.any() else None)
    present = [iou for iou in ious if iou is not None]
    accuracy = 100 * (prediction == target)[valid].mean()
    return Scores(sum(present) / len(present), accuracy, dict(zip(NAMES, ious, strict=True)))


def measured(*pairs: tuple[np.ndarray, np.ndarray]) -> ConfusionMatrix:
    metric = ConfusionMatrix(K)
    for prediction, target in pairs:
        metric.update(count_pixels(torch.from_numpy(prediction), torch.from_numpy(target), K))
    return metric


def approximately(found: Scores, expected: Scores) -> bool:
    return found.per_class == pytest.approx(expected.per_class, rel=1e-12) and (found.miou, found.aacc) == (
        pytest.approx((expected.miou, expected.aacc), rel=1e-12)
    )


@pytest.mark.parametrize("seed", range(5))
def test_scores_against_pixel_sets(seed):
    prediction, target = labels(seed)
    assert approximately(scores(measured((prediction, target)).compute()[0], NAMES), by_hand(prediction, target))


@pytest.mark.parametrize("seed", range(5))
def test_miou_against_torchmetrics(seed):
    prediction, target = labels(seed, classes=range(K) if seed < 3 else (0, 2, 3))
    reference = MulticlassJaccardIndex(K, average="macro", ignore_index=255)
    reference.update(torch.from_numpy(prediction), torch.from_numpy(target))
    found = scores(measured((prediction, target)).compute()[0], NAMES).miou
    assert found == pytest.approx(100 * float(reference.compute()), rel=1e-5)


def test_rows_are_truth_and_columns_prediction():
    prediction, target = np.array([[1, 1, 2, 0]]), np.array([[0, 1, 0, 255]])
    expected = torch.zeros(K, K, dtype=torch.int64)
    expected[0, 1] = expected[1, 1] = expected[0, 2] = 1
    assert torch.equal(measured((prediction, target)).compute()[0], expected)


def test_images_add_up_in_any_order_and_none_counts_more_than_its_pixels():
    pairs = [labels(0, (1, 30, 30)), labels(1, (1, 5, 4)), labels(2, (1, 9, 9))]
    one, two = measured(*pairs), measured(*reversed(pairs))
    assert torch.equal(one.compute()[0], two.compute()[0])
    flat = [np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1)]
    assert approximately(scores(one.compute()[0], NAMES), by_hand(*flat))


def test_absent_class_has_no_iou_and_no_part_in_the_mean():
    prediction, target = labels(3, classes=(0, 2, 4))
    found = scores(measured((prediction, target)).compute()[0], NAMES)
    assert [found.per_class[NAMES[k]] is None for k in range(K)] == [False, True, False, True, False, True]
    present = [value for value in found.per_class.values() if value is not None]
    assert found.miou == pytest.approx(sum(present) / 3)


def test_class_that_is_only_predicted_or_only_there_counts_as_zero():
    found = scores(measured((np.array([0, 0, 1]), np.array([0, 2, 0]))).compute()[0], NAMES)
    assert found.per_class == {NAMES[0]: pytest.approx(100 / 3), NAMES[1]: 0, NAMES[2]: 0} | dict.fromkeys(NAMES[3:])
    assert found.miou == pytest.approx(100 / 9)


def test_class_predicted_only_where_pixels_do_not_count_is_absent():
    found = scores(measured((np.array([0, 5]), np.array([0, 255]))).compute()[0], NAMES)
    assert found.per_class[NAMES[5]] is None
    assert found.miou == found.aacc == 100


def test_nothing_counted():
    metric = measured((np.array([0, 5]), np.array([255, 255])))
    assert scores(metric.compute()[0], NAMES) == Scores(None, None, dict.fromkeys(NAMES))


@pytest.mark.parametrize(
    ("prediction", "target", "says"),
    [
        ([0, 1], [0, K], "target"),
        ([0, 1], [-1, 0], "target"),
        ([0, 1], [254, 0], "target"),
        ([0, K], [0, 1], "prediction"),
        ([-1, 0], [0, 1], "prediction"),
        ([255, 0], [0, 1], "prediction"),
    ],
)
def test_label_outside_the_classes(prediction, target, says):
    with pytest.raises(ValueError, match=says):
        count_pixels(torch.tensor(prediction), torch.tensor(target), K)


def test_prediction_where_pixels_do_not_count_may_be_anything():
    assert int(count_pixels(torch.tensor([255, 3]), torch.tensor([255, 3]), K).sum()) == 1


def test_other_ignored_label_and_small_integer_types():
    prediction, target = (torch.tensor(labels, dtype=torch.uint8) for labels in ([1, 5, 5], [0, 5, 4]))
    found = count_pixels(prediction, target, K, ignore_index=0)
    assert found[5, 5] == found[4, 5] == 1 and int(found.sum()) == 2


def test_counts_are_exact_where_floats_are_not():
    matrix = torch.zeros(K, K, dtype=torch.int64)
    matrix[0, 0], matrix[0, 1] = 2**24, 1  # the next float32 after 2**24 is 2**24 + 2
    assert scores(matrix, NAMES).aacc == pytest.approx(100 * 2**24 / (2**24 + 1), rel=1e-15)
    metric = ConfusionMatrix(K)
    metric.update(matrix)
    metric.update(count_pixels(torch.tensor([0]), torch.tensor([0]), K))
    assert int(metric.compute()[0][0, 0]) == 2**24 + 1


def test_counts_of_each_image():
    """Images in any order; what is no image's own still counts for the whole."""
    metric = ConfusionMatrix(K, num_images=3)
    pairs = {2: labels(0), 0: labels(1)}
    for image, (prediction, target) in pairs.items():
        metric.update(count_pixels(torch.tensor(prediction), torch.tensor(target), K), image)
    matrix, per_image = metric.compute()
    assert per_image.shape == (3, K, 3) and not per_image[1].any()
    for image, (prediction, target) in pairs.items():
        counted = target != 255
        for k in range(K):
            hit = ((prediction == k) & (target == k) & counted).sum()
            expected = [hit, ((prediction == k) & counted).sum(), ((target == k) & counted).sum()]
            assert per_image[image, k].tolist() == expected
    assert torch.equal(per_image.sum(dim=0)[:, 0], matrix.diag())


@pytest.mark.parametrize(
    ("per_class", "seen", "expected"),
    [
        ({"a": 30.0, "b": 60.0, "c": 20.0}, {"a", "b"}, (45.0, 20.0, 2 * 45 * 20 / 65)),
        ({"a": 30.0, "b": None, "c": 20.0, "d": None, "e": 10.0}, ["a", "b"], (30.0, 15.0, 20.0)),
        ({"a": 0.0, "b": 0.0}, {"a"}, (0.0, 0.0, 0.0)),
        ({"a": 0.0, "b": 50.0}, {"b"}, (50.0, 0.0, 0.0)),
        ({"a": 30.0, "b": 40.0}, {"a", "b", "never measured"}, (35.0, None, None)),
        ({"a": 30.0, "b": None}, {"a"}, (30.0, None, None)),
        ({"a": 30.0, "b": 40.0}, (), (None, 35.0, None)),
        ({"a": None}, {"a"}, (None, None, None)),
        ({}, {"a"}, (None, None, None)),
    ],
)
def test_seen_and_unseen_classes_apart(per_class, seen, expected):
    found = seen_scores(per_class, seen)
    assert vars(found) == pytest.approx(vars(SeenScores(*expected)))


# Counts and confusions --------------------------------------------------------------------------------------------


def test_miou_of_counts():
    # dog: 3 of 5 + 4 - 3; cat: predicted, never true; the third class has no pixel at all.
    sums = torch.tensor([[3, 4, 5], [0, 1, 0], [0, 0, 0]])
    found = mious(torch.stack([sums, 0 * sums, 2 * sums]))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([25, float("nan"), 25], nan_ok=True)
    assert class_counts(torch.tensor([[1, 2], [3, 4]])).tolist() == [[1, 4, 3], [4, 6, 7]]


@pytest.mark.parametrize(
    ("matrix", "count", "expected"),
    [
        (
            [[70, 20, 10], [5, 95, 0], [0, 30, 2]],
            3,
            ["<b> taken for chair: 93.8 %", "sofa taken for chair: 20.0 %", "sofa taken for <b>: 10.0 %"],
        ),
        ([[70, 20, 10], [5, 95, 0], [0, 30, 2]], 99, ["<b>", "sofa", "sofa", "chair"]),  # empty cells are no confusion
        (
            [[7, 7, 7]] * 3,
            4,
            ["sofa taken for chair", "sofa taken for <b>", "chair taken for sofa", "chair taken for <b>"],
        ),
        ([[10_000_000, 1, 0], [0, 3, 0], [0, 0, 0]], 5, ["sofa taken for chair: < 0.1 % of sofa's pixels"]),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 5, []),
        ([[70, 20, 10], [5, 95, 0], [0, 30, 2]], 0, []),
    ],
)
def test_largest_confusions(matrix, count, expected):
    given = torch.tensor(matrix)
    found = largest_confusions(given, ("sofa", "chair", "<b>"), count)
    assert len(found) == len(expected) and all(map(str.startswith, found, expected)), found
    assert given.tolist() == matrix  # left as it was
