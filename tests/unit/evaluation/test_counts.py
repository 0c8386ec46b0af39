"""Counts per image: their mIoU, their file, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from simzss.errors import InputError
from simzss.evaluation.counts import (
    Counts,
    class_counts,
    counts_file,
    load_counts,
    miou,
    mious,
    ranked_images,
    save_counts,
)
from simzss.evaluation.metrics import scores
from tests.unit.reports.runs import counts_of


@pytest.fixture
def counts():
    return counts_of(["a", "b/c", "ü"], ("dog", "<b>", "never", "cat"), seed=1, absent=(2,))


def test_miou_is_that_of_the_metric(counts):
    expected = scores(counts.confusion, counts.classes)["mIoU"]
    assert miou(counts.per_image.sum(dim=0)) == pytest.approx(expected, abs=1e-12)


def test_miou_by_hand():
    # dog: 3 of 5 + 4 - 3; cat: predicted, never true; the third class has no pixel at all.
    sums = torch.tensor([[3, 4, 5], [0, 1, 0], [0, 0, 0]])
    assert miou(sums) == pytest.approx(100 * (3 / 6 + 0) / 2)
    assert math.isnan(miou(torch.zeros(3, 3, dtype=torch.int64)))
    assert mious(torch.stack([sums, 0 * sums, 2 * sums])).isnan().tolist() == [False, True, False]


def test_many_at_once_are_those_one_by_one(counts):
    together = mious(counts.per_image)
    assert together.dtype == torch.float64
    assert together.tolist() == [miou(image) for image in counts.per_image]


def test_class_counts():
    confusion = torch.tensor([[1, 2], [3, 4]])
    assert class_counts(confusion).tolist() == [[1, 4, 3], [4, 6, 7]]


def test_ranked_images():
    matrices = torch.tensor([[[5, 5], [0, 5]], [[9, 0], [0, 9]], [[0, 0], [0, 0]], [[1, 1], [0, 1]]])
    per_image = torch.stack([class_counts(matrix) for matrix in matrices])
    ranked = ranked_images(Counts(("z", "good", "empty", "a"), ("x", "y"), per_image, matrices.sum(dim=0)))
    assert [name for name, _ in ranked] == ["a", "z", "good"]
    assert [score for _, score in ranked] == [50.0, 50.0, 100.0]


def test_round_trip(tmp_path, counts):
    path = counts_file(tmp_path / "run", "voc20")
    save_counts(path, counts)
    again = load_counts(path)
    assert (again.images, again.classes) == (counts.images, counts.classes)
    assert torch.equal(again.per_image, counts.per_image) and torch.equal(again.confusion, counts.confusion)
    assert [file.name for file in path.parent.iterdir()] == ["voc20.safetensors"]


def test_other_memory_layout_is_saved(tmp_path, counts):
    turned = replace(counts, per_image=counts.per_image.permute(2, 1, 0).contiguous().permute(2, 1, 0))
    save_counts(tmp_path / "c.safetensors", turned)
    assert torch.equal(load_counts(tmp_path / "c.safetensors").per_image, counts.per_image)


def test_file_names(tmp_path):
    assert counts_file(tmp_path, "voc20") == tmp_path / "counts" / "voc20.safetensors"
    assert counts_file(tmp_path, "voc20", "engineered") == tmp_path / "counts" / "voc20_engineered.safetensors"


def refused(path, *parts):
    with pytest.raises(InputError) as caught:
        load_counts(path)
    message = str(caught.value)
    assert str(path) in message and all(part in message for part in parts), message


def test_missing_and_broken_files(tmp_path, counts):
    path = tmp_path / "c.safetensors"
    refused(path, "do not exist")
    path.write_bytes(b"no such format")
    refused(path, "cannot be read")
    save_counts(path, counts)
    path.write_bytes(path.read_bytes()[:-8])
    refused(path, "cannot be read")
    names = {"images": '["a", "b/c", "ü"]', "classes": '["dog", "<b>", "never", "cat"]'}
    tensors = {"per_image": counts.per_image, "confusion": counts.confusion}
    save_file({"per_image": counts.per_image}, path, names)
    refused(path, "confusion")
    save_file(tensors, path)
    refused(path, "lack", "images")
    save_file(tensors, path, names | {"classes": "[dog"})
    refused(path, "cannot be read")
    save_file(tensors, path, names | {"classes": '{"dog": 1}'})
    refused(path, "classes")
    save_file(tensors, path, names)
    assert load_counts(path).images == ("a", "b/c", "ü")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: {"images": ("a", "b")}, ["per_image", "2 images"]),
        (lambda c: {"classes": ("dog", "cat")}, ["2 classes"]),
        (lambda c: {"images": ("a", "b", "a")}, ["'a'", "twice"]),
        (lambda c: {"per_image": c.per_image.int()}, ["per_image", "torch.int32"]),
        (lambda c: {"confusion": c.confusion[:3]}, ["confusion", "(3, 4)"]),
        (lambda c: {"per_image": c.per_image.roll(1, dims=2)}, ["intersection"]),
        (lambda c: {"confusion": c.confusion.T.contiguous()}, ["does not add up"]),
        (lambda c: {"confusion": 2 * c.confusion}, ["does not add up"]),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, counts, change, says):
    path = tmp_path / "c.safetensors"
    with pytest.raises(InputError) as caught:
        save_counts(path, replace(counts, **change(counts)))
    assert all(part in str(caught.value) for part in [str(path), *says]), caught.value
    assert not path.exists()


def test_folder_that_cannot_be_made(tmp_path, counts):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        save_counts(tmp_path / "file" / "c.safetensors", counts)
