"""Counts per image: their file, and what is refused."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from simzss.evaluation.counts import Counts, counts_file, load_counts, ranked_images, save_counts
from simzss.evaluation.metrics import class_counts
from tests.support.models import refused
from tests.unit.reports.runs import counts_of


@pytest.fixture
def counts():
    return counts_of(["a", "b/c", "ü"], ("dog", "<b>", "never", "cat"), seed=1, absent=(2,))


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


def test_missing_and_broken_files(tmp_path, counts):
    path = tmp_path / "c.safetensors"
    refused(lambda: load_counts(path), str(path), "do not exist")
    names = {"images": '["a", "b/c", "ü"]', "classes": '["dog", "<b>", "never", "cat"]'}
    tensors = {"per_image": counts.per_image, "confusion": counts.confusion}
    save_counts(path, counts)
    cases = [
        (lambda: path.write_bytes(b"no such format"), "cannot be read"),
        (lambda: path.write_bytes(whole[:-8]), "cannot be read"),
        (lambda: save_file({"per_image": counts.per_image}, path, names), "confusion"),
        (lambda: save_file(tensors, path), "lack the metadata 'images'"),
        (lambda: save_file(tensors, path, names | {"classes": "[dog"}), "cannot be read"),
        (lambda: save_file(tensors, path, names | {"classes": '{"dog": 1}'}), "classes"),
    ]
    whole = path.read_bytes()
    for write, says in cases:
        write()
        refused(lambda: load_counts(path), str(path), says)
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
    refused(lambda: save_counts(path, replace(counts, **change(counts))), str(path), *says)
    assert not path.exists()


def test_folder_that_cannot_be_made(tmp_path, counts):
    (tmp_path / "file").touch()
    refused(lambda: save_counts(tmp_path / "file" / "c.safetensors", counts), "cannot be written")
