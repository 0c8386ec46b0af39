"""Votes of regions, against loops over pixels in float64."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simzss.models.sam.load import load_sam
from simzss.segmentation.refine import vote as module
from simzss.segmentation.refine.vote import _rounds, vote
from simzss.segmentation.settings import VoteSettings
from tests.unit.models.sam.tiny import image, save_first, save_second
from tests.unit.segmentation.refine.scenes import Masks, blobs

SETTINGS = VoteSettings(points=8)


class Scene:
    """A segmenter that knows its scene: discs (x, y, radius, predicted IoU), relative to the sides. A point gets the
    smallest disc that holds it, and the same with a soft edge; what is outside of all gets a mask that is unsure."""

    def __init__(self, *discs: tuple[float, float, float, float], shape: tuple[int, int] = (256, 256)) -> None:
        self.discs = sorted(discs, key=lambda disc: disc[2])
        y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side for side in shape], indexing="ij")
        self.depth = torch.stack([r - ((x - u).square() + (y - v).square()).sqrt() for u, v, r, _ in self.discs])
        self.asked: list[Any] = []

    def decode(self, encoding, prompts, multimask=False):
        assert multimask
        self.asked.append(prompts)
        logits, iou = [], []
        for ((x, y),) in prompts.points.tolist():
            inside = [n for n, (u, v, r, _) in enumerate(self.discs) if (x - u) ** 2 + (y - v) ** 2 < r**2]
            depth = self.depth[inside[0] if inside else 0]
            logits.append(torch.stack([1000 * depth, 10 * depth]))  # the second one is not stable
            iou.append([self.discs[inside[0]][3] if inside else 0.1] * 2)
        return Masks(torch.stack(logits), torch.tensor(iou))


def inside(disc, y: int, x: int, size: tuple[int, int]) -> float:
    """How far inside a disc the centre of a pixel lies."""
    u, v, radius, _ = disc
    return radius - (((x + 0.5) / size[1] - u) ** 2 + ((y + 0.5) / size[0] - v) ** 2) ** 0.5


DISCS = ((0.4, 0.45, 0.35, 0.95), (0.3, 0.4, 0.12, 0.9), (0.8, 0.75, 0.15, 0.92))


@pytest.mark.parametrize("kind", ["probability", "label"])
@pytest.mark.parametrize(
    ("count", "shape", "size"),
    [(5, (30, 41), (30, 41)), (5, (31, 30), (64, 57)), (3, (50, 40), (23, 29)), (1, (9, 9), (9, 9))],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_same_as_a_plain_loop(kind, count, shape, size, seed):
    """Known discs, from the largest to the smallest: votes of the pixels of the coarse map in it, pixel by pixel."""
    probabilities = blobs(count, *shape, seed)
    voted = vote(Scene(*DISCS), None, probabilities, SETTINGS.replace(vote=kind), size)
    planes = probabilities.double().numpy()
    scores = F.interpolate(probabilities[None].double(), size, mode="bilinear")[0].numpy()
    sure = np.ones(size, dtype=bool)
    for disc in sorted(DISCS, key=lambda disc: -disc[2]):
        total, pixels = np.zeros(count), 0
        for y in range(shape[0]):
            for x in range(shape[1]):
                if inside(disc, y, x, shape) > 0:
                    values = planes[:, y, x]
                    total += values if kind == "probability" else np.eye(count)[values.argmax()]
                    pixels += 1
        for y in range(size[0]):
            for x in range(size[1]):
                depth = inside(disc, y, x, size)
                if depth > 0:
                    scores[:, y, x] = total / pixels
                sure[y, x] &= abs(depth) > 0.004  # nearer to the edge than the resolution of the regions says
    assert sure.mean() > 0.9
    labels = scores.argmax(axis=0)
    assert voted.labels.dtype == torch.long
    np.testing.assert_array_equal(voted.labels.numpy()[sure], labels[sure])
    np.testing.assert_allclose(voted.scores().numpy()[:, sure], scores[:, sure], rtol=0, atol=0.02)
    assert torch.equal(voted.scores().argmax(dim=0), voted.labels)
    assert voted.counts.kept == 3
    assert abs(voted.counts.covered / voted.counts.pixels - 0.39) < 0.08


def test_counts_add_up():
    counts = vote(Scene(*DISCS), None, blobs(4, 30, 30, 0), SETTINGS, (60, 60)).counts
    assert counts.points + counts.answered == 64
    assert counts.answered > 0
    assert counts.regions == 2 * counts.points
    assert counts.regions == counts.unsure + counts.doubles + counts.kept + counts.unseen
    assert counts.unsure > 0
    assert counts.doubles > 0
    both = counts + counts
    assert both.kept == 6
    assert torch.equal(both.lost, 2 * counts.lost)


def test_probability_and_label_differ():
    """Three pixels of a weak majority against one of a sure minority."""
    probabilities = torch.zeros(2, 2, 2)
    probabilities[0] = torch.tensor([[0.55, 0.55], [0.55, 0.0]])
    probabilities[1] = 1 - probabilities[0]
    scene = Scene((0.5, 0.5, 0.9, 0.95))
    for kind, label in (("label", 0), ("probability", 1)):
        voted = vote(scene, None, probabilities, SETTINGS.replace(vote=kind), (8, 8))
        assert (voted.labels == label).all()
        assert voted.counts.lost.tolist() == [label, 1 - label]  # the other one is gone, and counted


def test_unsure_regions_leave_the_coarse_map():
    probabilities = blobs(4, 20, 30, 2)
    for settings in (SETTINGS.replace(min_iou=0.96), SETTINGS.replace(min_stability=1.0)):
        voted = vote(Scene(*DISCS), None, probabilities, settings, (20, 30))
        assert torch.equal(voted.labels, probabilities.argmax(dim=0))
        torch.testing.assert_close(voted.scores(), probabilities)
        assert (voted.counts.kept, voted.counts.covered, voted.counts.lost.sum()) == (0, 0, 0)


def test_a_region_without_a_pixel_of_the_coarse_map_is_counted():
    scene = Scene((0.19, 0.19, 0.05, 0.95))
    probabilities = torch.tensor([[[0.9, 0.2], [0.1, 0.3]], [[0.1, 0.8], [0.9, 0.7]]])  # centres at 0.25 and 0.75
    voted = vote(scene, None, probabilities, SETTINGS, (64, 64))
    assert (voted.counts.unseen, voted.counts.kept, voted.counts.covered) == (1, 0, 0)


@pytest.mark.parametrize(("name", "value"), [("_CALL", 1), ("_CALL", 5), ("CHUNK_BYTES", 1), ("CHUNK_BYTES", 10**5)])
def test_chunks_make_no_difference(monkeypatch, name, value):
    probabilities = blobs(5, 40, 40, 3)
    expected = vote(Scene(*DISCS), None, probabilities, SETTINGS, (50, 60))
    monkeypatch.setattr(module, name, value)
    voted = vote(Scene(*DISCS), None, probabilities, SETTINGS, (50, 60))
    assert torch.equal(voted.labels, expected.labels)
    torch.testing.assert_close(voted.scores(), expected.scores())


@pytest.mark.parametrize("size", [(1, 90), (90, 1), (1, 1), (2, 3)])
def test_thin_images(size):
    probabilities = blobs(3, *size, 0)
    voted = vote(Scene((0.5, 0.5, 0.3, 0.95), shape=size), None, probabilities, SETTINGS, size)
    assert voted.labels.shape == size
    assert voted.scores().shape == (3, *size)


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (64, 64), (1, 500)])
@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_grid_covers_the_image_evenly(size, count):
    first, others = _rounds(count, size)
    rows, columns = (max(1, round(count * side / max(size))) for side in size)
    expected = {((x + 0.5) / columns, (y + 0.5) / rows) for y in range(rows) for x in range(columns)}
    found = torch.cat([first, others]).tolist()
    assert len(found) == len(expected)
    np.testing.assert_allclose(sorted(found), sorted(map(list, expected)), rtol=1e-6)
    assert len(first) >= 1
    assert len(first) <= max(1, (rows + 1) // 2) * max(1, (columns + 1) // 2)


def test_points_in_a_region_are_not_asked_again():
    scene = Scene((0.5, 0.5, 0.25, 0.95))
    vote(scene, None, blobs(3, 30, 30, 0), SETTINGS, (60, 60))
    first, *later = (prompts.points[:, 0] for prompts in scene.asked)
    assert ((first - 0.5).norm(dim=1) < 0.25).any()
    assert ((torch.cat(later) - 0.5).norm(dim=1) > 0.24).all()


def test_a_large_region_does_not_answer_for_what_it_holds():
    scene = Scene((0.5, 0.5, 0.7, 0.95), (0.68, 0.68, 0.05, 0.95))  # only a point of the second round hits the latter
    assert vote(scene, None, blobs(3, 30, 30, 0), SETTINGS, (60, 60)).counts.kept == 2


@pytest.mark.parametrize("save", [save_first, save_second])
def test_with_a_real_decoder(tmp_path, save):
    """Random weights: what it draws is noise, but all of it is accounted for."""
    sam = load_sam(str(save(tmp_path)))
    photo = image(41, 60)
    settings = VoteSettings(points=6, min_iou=0, min_stability=0)
    voted = vote(sam, sam.encode(sam.resize(photo)), blobs(4, 30, 44, 0), settings, (41, 60))
    counts = voted.counts
    assert counts.points + counts.answered == 24
    assert counts.regions == 3 * counts.points
    assert counts.regions == counts.unsure + counts.doubles + counts.kept + counts.unseen
    assert counts.kept > 0
    assert counts.covered > 0
    assert torch.equal(voted.scores().argmax(dim=0), voted.labels)
