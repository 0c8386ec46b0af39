"""Redrawn regions, against the rule pixel by pixel in float64."""

from typing import Any

import numpy as np
import pytest
import torch

from simzss.models.sam.load import load_sam
from simzss.models.sam.sam import Prompts
from simzss.segmentation.refine import sam as module
from simzss.segmentation.refine.geometry import regions
from simzss.segmentation.refine.sam import refine
from simzss.segmentation.settings import SamRefinementSettings
from tests.unit.models.sam.tiny import image, save_first, save_second
from tests.unit.segmentation.refine.scenes import Masks, blobs

BACKGROUNDS = ("compete", "yield", "rest")
SETTINGS = SamRefinementSettings(threshold=0.3, min_area=225 * 4)  # 4 pixels on a map of a short side of 30


class Scene:
    """A segmenter that knows its scene: discs (x, y, radius, predicted IoU), relative to the sides; a point gets the
    disc whose centre is nearest."""

    def __init__(self, *discs: tuple[float, float, float, float], side: int = 64) -> None:
        self.discs = torch.tensor(discs)
        y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
        distance = (x - self.discs[:, 0, None, None]).square() + (y - self.discs[:, 1, None, None]).square()
        self.logits = 40 * (self.discs[:, 2, None, None] - distance.sqrt())
        self.asked: list[Any] = []

    def decode(self, encoding, prompts, multimask=False):
        assert not multimask
        self.asked.append(prompts)
        chosen = torch.cdist(prompts.points[:, 0], self.discs[:, :2]).argmin(dim=1)
        return Masks(self.logits[chosen, None], self.discs[chosen, 3, None])


def random_scene(seed: int, count: int = 6) -> Scene:
    discs = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    discs[:, 2] = 0.05 + 0.2 * discs[:, 2]
    discs[:, 3] = 0.6 + 0.4 * discs[:, 3]  # one half above 0.8
    return Scene(*map(tuple, discs.tolist()))


def redrawn(scene, probabilities, size, background: bool = True, **changes):
    return refine(scene, None, probabilities, SETTINGS.replace(**changes), size, background=background)


def nearness(cells: int, length: int) -> np.ndarray:
    """(length, cells): what each cell along a side counts in each pixel, half-pixel centres."""
    weights = np.zeros((length, cells))
    for pixel in range(length):
        at = min(max((pixel + 0.5) * cells / length - 0.5, 0), cells - 1)
        for cell in range(cells):
            weights[pixel, cell] = max(0.0, 1 - abs(at - cell))
    return weights


def plain_bilinear(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) float64."""
    return nearness(plane.shape[0], size[0]) @ plane @ nearness(plane.shape[1], size[1]).T


def plain(scene, probabilities, settings, size, background):
    """Labels and scores pixel by pixel in float64, by the rule as it is written down."""
    count, height, width = probabilities.shape
    min_area = settings.min_area * (min(height, width) / 448) ** 2
    found = regions(probabilities, settings.threshold, min_area, list(range(int(background), count)))
    coarse = np.stack([plain_bilinear(plane, size) for plane in probabilities.double().numpy()])
    drawn = []
    for index in range(len(found)):
        distance = (found.points[index] - scene.discs[:, :2]).double().norm(dim=1)
        disc = int(distance.argmin())
        logits = plain_bilinear(scene.logits[disc].double().numpy(), size)
        top, left, bottom, right = found.spans[index].tolist()
        own = np.zeros(size, dtype=bool)
        for y in range(size[0]):
            for x in range(size[1]):
                v, u = int((y + 0.5) * height / size[0]), int((x + 0.5) * width / size[1])
                if top <= v < bottom and left <= u < right:
                    own[y, x] = found.cells[index][v - top, u - left]
        accepted = float(scene.discs[disc, 3]) > settings.min_iou
        drawn.append((int(found.class_index[index]), accepted, 1 / (1 + np.exp(-logits)), own))
    trimmed = {row for row, accepted, _, _ in drawn if accepted}
    labels, scores = np.zeros(size, dtype=int), np.zeros((count, *size))
    for y in range(size[0]):
        for x in range(size[1]):
            merged, strongest, covered = [0.0] * count, 0.0, False
            for row, accepted, mask, own in drawn:
                if accepted:
                    merged[row] = max(merged[row], mask[y, x] * coarse[row, y, x])
                    strongest = max(strongest, mask[y, x])
                elif own[y, x]:
                    merged[row] = max(merged[row], coarse[row, y, x])
                    covered = True
            covered = covered or strongest >= 0.5
            mine = int(coarse[:, y, x].argmax())
            if background and settings.background == "compete":
                merged[0] = coarse[0, y, x] * (1 - strongest)
                covered = covered or mine in trimmed
            elif background and strongest < 0.5:
                merged[0] = coarse[0, y, x]
            if covered:
                scores[:, y, x], labels[y, x] = merged, int(np.argmax(merged))
            elif background and settings.background == "rest":
                scores[0, y, x] = 1
            else:
                scores[:, y, x], labels[y, x] = coarse[:, y, x], mine
    return labels, scores


# Against the plain loop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "shape", "size", "background"),
    [
        (5, (30, 41), (30, 41), None),
        (5, (30, 41), (47, 53), None),
        (3, (33, 30), (20, 19), None),
        (5, (30, 30), (31, 45), "compete"),
        (5, (30, 30), (31, 45), "yield"),
        (5, (30, 30), (31, 45), "rest"),
        (4, (1, 37), (1, 50), "compete"),
        (1, (12, 15), (12, 15), None),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_same_as_a_plain_loop(count, shape, size, background, seed):
    probabilities = blobs(count, *shape, seed=seed)
    scene = random_scene(seed)
    settings = SETTINGS.replace(background=background or "compete")
    refined = refine(scene, None, probabilities, settings, size, background=background is not None)
    labels, scores = plain(scene, probabilities, settings, size, background is not None)
    assert refined.labels.dtype == torch.long
    np.testing.assert_array_equal(refined.labels.numpy(), labels)
    np.testing.assert_allclose(refined.scores().numpy(), scores, rtol=0, atol=1e-5)
    assert torch.equal(refined.scores().argmax(dim=0), refined.labels)
    counts = refined.counts
    assert torch.equal(counts.prompts, counts.accepted + counts.failed)
    assert count != 5 or (counts.accepted.sum() > 0 and (seed or counts.failed.sum() > 0))


@pytest.mark.parametrize(("name", "value"), [("_CALL", 1), ("_CALL", 3), ("CHUNK_BYTES", 1), ("CHUNK_BYTES", 14000)])
def test_chunks_make_no_difference(monkeypatch, name, value):
    probabilities = blobs(6, 40, 40, seed=3)
    expected = redrawn(random_scene(4), probabilities, (50, 60))
    assert expected.counts.prompts.sum() > 4
    monkeypatch.setattr(module, name, value)
    refined = redrawn(random_scene(4), probabilities, (50, 60))
    assert torch.equal(refined.labels, expected.labels)
    torch.testing.assert_close(refined.scores(), expected.scores())
    assert refined.counts.by_name("abcdef") == expected.counts.by_name("abcdef")
    assert torch.equal(probabilities, blobs(6, 40, 40, seed=3))  # nothing given is changed


# What the segmenter is asked ---------------------------------------------------------------------------------------


def square(*rows: tuple[int, int, int, int, float], shape: tuple[int, int] = (40, 40)) -> torch.Tensor:
    """Probabilities of a background and a class for each square (top, left, bottom, right, probability)."""
    planes = torch.zeros(len(rows) + 1, *shape)
    for number, (top, left, bottom, right, probability) in enumerate(rows, start=1):
        planes[number, top:bottom, left:right] = probability
    planes[0] = 1 - planes[1:].sum(dim=0)
    return planes


def test_one_call_with_box_point_and_mask():
    scene = Scene((0.25, 0.25, 0.1, 0.9), (0.7, 0.7, 0.1, 0.9))
    probabilities = square((4, 6, 14, 16, 0.6), (20, 24, 36, 32, 0.7))
    probabilities[1, 9, 12] = 0.65
    redrawn(scene, probabilities, (80, 80))
    (prompts,) = scene.asked
    torch.testing.assert_close(prompts.boxes, torch.tensor([[0.15, 0.1, 0.4, 0.35], [0.6, 0.5, 0.8, 0.9]]))
    torch.testing.assert_close(prompts.points[0], torch.tensor([[12.5 / 40, 9.5 / 40]]))
    assert prompts.labels.tolist() == [[1], [1]]
    torch.testing.assert_close(prompts.masks, 0.005 * probabilities[1:])


def test_mask_prompts():
    """None without a scale, and no larger than a decoder takes."""
    for scale, shape in ((None, None), (0.1, (2, 150, 256))):
        scene = Scene((0.25, 0.25, 0.1, 0.9))
        probabilities = torch.full((3, 300, 512), 0.3)
        probabilities[1:, :100, :100] = torch.tensor([0.4, 0.6])[:, None, None]
        redrawn(scene, probabilities, (30, 51), mask_scale=scale)
        assert shape == (None if scale is None else scene.asked[0].masks.shape)


def test_size_of_a_region_follows_the_resolution():
    for side, kept in ((448, [14, 16]), (224, [7, 8])):
        for length, number in zip(kept, (0, 1), strict=True):
            scene = Scene((0.2, 0.2, 0.1, 0.9))
            probabilities = square((10, 10, 10 + length, 10 + length, 0.9), shape=(side, side + 9))
            counts = redrawn(scene, probabilities, (20, 20), min_area=225).counts
            assert (counts.prompts.tolist(), counts.small.tolist()) == ([0, number], [0, 1 - number])


# What becomes of it -----------------------------------------------------------------------------------------------


def test_failed_region_keeps_its_coarse_labels():
    probabilities = square((8, 8, 32, 32, 0.6))
    probabilities[:, 10:12] = torch.tensor([0.6, 0.4])[:, None, None]  # above the threshold, and yet background
    for background in (*BACKGROUNDS, None):
        settings = SETTINGS.replace(background=background or "compete")
        scene = Scene((0.5, 0.5, 0.1, 0.8))
        refined = refine(scene, None, probabilities, settings, (40, 40), background=background is not None)
        assert torch.equal(refined.labels, probabilities.argmax(dim=0))
    assert refined.counts.failed.tolist() == [1, 1]
    assert refined.counts.accepted.tolist() == [0, 0]  # an IoU at the limit is not above it


def test_nothing_above_the_threshold_is_the_coarse_map():
    scene = Scene((0.5, 0.5, 0.2, 0.9))
    probabilities = blobs(4, 20, 30, seed=2)
    for background in ("compete", "yield"):
        settings = SETTINGS.replace(threshold=0.999, background=background)
        refined = refine(scene, None, probabilities, settings, (20, 30), background=True)
        assert torch.equal(refined.labels, probabilities.argmax(dim=0))
        torch.testing.assert_close(refined.scores(), probabilities)
        assert all(not named for named in refined.counts.by_name("abcd").values())
    assert not scene.asked


def test_background_has_no_region():
    scene = Scene((0.5, 0.5, 0.2, 0.9))
    probabilities = square((2, 2, 5, 5, 0.9))
    counts = redrawn(scene, probabilities, (40, 40)).counts
    assert counts.prompts.tolist() == [0, 1]
    counts = redrawn(scene, probabilities, (40, 40), background=False).counts
    assert counts.prompts.tolist() == [1, 1]


def test_a_lost_class_is_counted():
    """The mask of a region lies elsewhere: its class is gone, and the count says so."""
    scene = Scene((0.9, 0.9, 0.05, 0.9))
    probabilities = square((2, 2, 12, 12, 0.9), (20, 5, 30, 25, 0.9))
    probabilities[2, 20:30, 5:25], probabilities[0, 20:30, 5:25] = 0.25, 0.75  # below the threshold
    refined = redrawn(scene, probabilities, (40, 40))
    assert set(refined.labels.unique().tolist()) == {0}
    assert refined.counts.lost.tolist() == [0, 1, 0]
    both = refined.counts + refined.counts
    table = {"prompts": {"cat": 2}, "accepted": {"cat": 2}, "failed": {}, "small": {}, "lost": {"cat": 2}}
    assert both.by_name(["background", "cat", "dog"]) == table


def test_a_small_class_that_masks_paint_over_is_counted():
    scene = Scene((0.5, 0.5, 0.6, 0.9))
    probabilities = square((2, 2, 38, 38, 0.7))
    probabilities = torch.cat([probabilities, torch.zeros(1, 40, 40)])
    probabilities[:, 20, 20] = torch.tensor([0.05, 0.35, 0.6])
    refined = redrawn(scene, probabilities, (40, 40))
    assert refined.counts.small.tolist() == [0, 0, 1]
    assert refined.counts.lost.tolist() == [0, 0, 1]


def test_mask_over_a_class_without_probability_says_nothing():
    scene = Scene((0.5, 0.5, 0.6, 0.9))
    probabilities = square((10, 10, 20, 20, 1.0), (25, 25, 30, 30, 1.0))
    refined = redrawn(scene, probabilities[1:], (40, 40), background=False)
    assert torch.equal(refined.labels, probabilities[1:].argmax(dim=0))


@pytest.mark.parametrize("save", [save_first, save_second])
def test_with_a_real_decoder(tmp_path, save):
    """Random weights: what is accepted is what the decoder says of each region when it is asked one by one."""
    sam = load_sam(str(save(tmp_path)))
    encoding = sam.encode(sam.resize(image(41, 60)))
    probabilities = blobs(5, 30, 44, seed=0)
    found = regions(probabilities, SETTINGS.threshold, SETTINGS.min_area * (30 / 448) ** 2, range(5))
    ious = torch.cat(
        [
            sam.decode(
                encoding,
                Prompts(
                    found.points[[index], None],
                    torch.ones(1, 1, dtype=torch.long),
                    found.boxes[[index]],
                    0.005 * probabilities[found.class_index[[index]]],
                ),
            ).iou[:, 0]
            for index in range(len(found))
        ]
    )
    ordered = ious.sort().values
    min_iou = float(ordered[len(ious) // 2 - 1 : len(ious) // 2 + 1].mean())
    settings = SETTINGS.replace(min_iou=min_iou)
    refined = refine(sam, encoding, probabilities, settings, (41, 60), background=True)
    expected = found.class_index[ious > min_iou].bincount(minlength=5)
    expected[0] = 0
    assert torch.equal(refined.counts.accepted, expected)
    assert 0 < refined.counts.accepted.sum() < refined.counts.prompts.sum()
    assert torch.equal(refined.scores().argmax(dim=0), refined.labels)
