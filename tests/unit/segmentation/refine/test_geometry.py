"""Regions, against flooding from pixel to pixel."""

import numpy as np
import pytest
import torch

from simzss.segmentation.refine.geometry import regions


def flood(plane: np.ndarray, threshold: float) -> list[set[tuple[int, int]]]:
    """Regions by flooding from pixel to pixel, in reading order of their first pixels."""
    height, width = plane.shape
    seen: set[tuple[int, int]] = set()
    found = []
    for y in range(height):
        for x in range(width):
            if plane[y, x] <= threshold or (y, x) in seen:
                continue
            region, open_ends = {(y, x)}, [(y, x)]
            while open_ends:
                v, u = open_ends.pop()
                for pixel in [(v + i, u + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                    inside = 0 <= pixel[0] < height and 0 <= pixel[1] < width
                    if inside and pixel not in region and plane[pixel] > threshold:
                        region.add(pixel)
                        open_ends.append(pixel)
            seen |= region
            found.append(region)
    return found


def blobs(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Probabilities with regions of all sizes: noise, smoothed a little."""
    noise = torch.randn(count, 1, height + 2, width + 2, generator=torch.Generator().manual_seed(seed))
    return (4 * torch.nn.functional.avg_pool2d(noise, 3, 1)[:, 0]).softmax(dim=0)


@pytest.mark.parametrize(
    ("shape", "threshold", "min_area"),
    [
        ((19, 23), 0.3, 1),
        ((19, 23), 0.3, 6),
        ((40, 31), 0.2, 4.5),
        ((1, 37), 0.4, 2),
        ((17, 1), 0.4, 1),
        ((1, 1), 0.1, 1),
    ],
)
def test_same_as_flooding(shape, threshold, min_area):
    probabilities = blobs(5, *shape, seed=shape[1])
    found = regions(probabilities, threshold, min_area, [1, 2, 4])
    height, width = shape
    expected, small = [], {}
    for row in (1, 2, 4):
        plane = probabilities[row].numpy()
        for region in flood(plane, np.float32(threshold)):
            if len(region) < min_area:
                small[row] = small.get(row, 0) + 1
            else:
                expected.append((row, region, plane))
    assert found.small == small and (shape != (40, 31) or (len(found) > 5 and sum(small.values()) > 5))
    assert len(found) == len(expected) == len(found.boxes)
    for index, (row, region, plane) in enumerate(expected):
        ys, xs = [y for y, _ in region], [x for _, x in region]
        best = min(region, key=lambda pixel: (-plane[pixel], pixel))
        assert found.class_index[index] == row
        assert found.area[index] == len(region)
        assert set(map(tuple, found.union([index]).nonzero().tolist())) == region
        box = [min(xs) / width, min(ys) / height, (max(xs) + 1) / width, (max(ys) + 1) / height]
        assert found.boxes[index].tolist() == pytest.approx(box)
        assert found.points[index].tolist() == pytest.approx([(best[1] + 0.5) / width, (best[0] + 0.5) / height])


def test_pixels_that_touch_at_a_corner_are_one_region():
    probabilities = torch.zeros(1, 4, 4)
    probabilities[0, range(4), range(4)] = torch.tensor([0.6, 0.7, 0.9, 0.8])
    found = regions(probabilities, 0.5, 4, [0])
    assert found.area.tolist() == [4]
    assert found.boxes.tolist() == [[0, 0, 1, 1]]
    assert found.points.tolist() == [[0.625, 0.625]]


def test_a_region_inside_the_hole_of_another_stays_its_own():
    probabilities = torch.zeros(1, 5, 5)
    probabilities[0] = 0.8
    probabilities[0, 1:4, 1:4] = 0
    probabilities[0, 2, 2] = 0.9
    found = regions(probabilities, 0.5, 1, [0])
    assert found.area.tolist() == [16, 1]
    assert found.points[0].tolist() == pytest.approx([0.1, 0.1])  # the pixel of the other is not in it
    assert not found.union([0])[2, 2]
    assert int(found.union([0, 1]).sum()) == 17


def test_nothing_found():
    found = regions(torch.zeros(2, 3, 4), 0.2, 1, [0, 1])
    assert (len(found), found.boxes.shape, found.points.shape, found.small) == (0, (0, 4), (0, 2), {})
    assert len(regions(torch.ones(2, 3, 4), 0.2, 1, [])) == 0
    assert len(regions(torch.full((1, 3, 3), 0.5), 0.5, 1, [0])) == 0  # at the threshold is not above
