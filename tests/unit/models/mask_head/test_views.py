import numpy as np
import pytest
import torch

from simzss.models.feature_norm import FeatureNorm
from simzss.models.mask_head.views import VIEWS, look, views_of, views_per_image
from tests.support.models import make_backbone, shaken
from tests.unit.models.mask_head import loops
from tests.unit.models.mask_head.loops import close, noise

WINDOW, ROWS, COLUMNS, CELLS = 32, 2, 3, 2
DEPTHS = (0, 2, 5)


def photos(count: int = 2, height: int = ROWS * WINDOW, width: int = COLUMNS * WINDOW) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


# What is seen ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_numbers", [True, False])
@pytest.mark.parametrize("views", VIEWS)
def test_whole_images_then_windows(views, whole_numbers):
    images = photos(2, 8, 12) if whole_numbers else photos(2, 8, 12) / 255
    found = views_of(images, 4, views)
    counts = {"both": 14, "global": 2, "windows": 12}[views]
    assert found.shape == (counts, 3, 4, 4) and found.dtype == images.dtype
    if views != "windows":
        small = loops.resized(images.double().numpy(), (4, 4), antialias=True)
        expected = np.rint(small) if whole_numbers else small
        close(found[:2], expected, 1e-6)
    if views != "global":
        for number in range(12):
            image, row, column = number // 6, number % 6 // 3, number % 3
            window = images[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert found[counts - 12 + number].equal(window)


def test_an_image_of_one_window_is_seen_twice():
    images = photos(1, 4, 4)
    found = views_of(images, 4, "both")
    assert found[0].equal(images[0]) and found[1].equal(images[0])


# What the backbone makes of it ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["last", "self"])
def backbone(request):
    made = make_backbone(features=request.param)
    shaken(made.model)
    return made.double()


@pytest.fixture(scope="module")
def finish():
    norm = FeatureNorm("center", 64).double()
    norm.patch_mean.copy_(noise(64))
    return norm.patches


@pytest.fixture
def batches(backbone):
    """How many images went in, one number a forward."""
    sizes = []
    handles = [
        part.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        for part in (backbone.model.patch_embed, backbone.model.blocks[0])
    ]
    yield sizes
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("views", VIEWS)
def test_all_views_go_through_in_one_forward(backbone, finish, batches, views):
    look(backbone, finish, photos(), WINDOW, DEPTHS, views)
    count = {"both": 2 + 2 * ROWS * COLUMNS, "global": 2, "windows": 2 * ROWS * COLUMNS}[views]
    assert batches == [count, count]  # patches are made once, and the blocks follow once


@pytest.mark.parametrize("views", VIEWS)
def test_levels_are_what_the_backbone_makes_of_each_view_alone(backbone, finish, views):
    images = photos()
    levels = look(backbone, finish, images, WINDOW, DEPTHS, views)
    assert len(levels) == (2 if views == "both" else 1)
    if views != "windows":
        taps, patches, _ = backbone.taps(views_of(images, WINDOW, "global"), DEPTHS)
        for found, expected in zip(levels[0].taps, taps, strict=True):
            close(found, expected.numpy())
        close(levels[0].dense, finish(patches).mT.unflatten(2, (CELLS, CELLS)).numpy())
    if views != "global":
        fine = levels[-1]
        assert len(fine.taps) == 3 and fine.dense.shape == (2, 64, ROWS * CELLS, COLUMNS * CELLS)
        for image in range(2):
            for row in range(ROWS):
                for column in range(COLUMNS):
                    window = images[image : image + 1, :, row * WINDOW : (row + 1) * WINDOW]
                    window = window[..., column * WINDOW : (column + 1) * WINDOW]
                    taps, patches, _ = backbone.taps(window, DEPTHS)
                    dense = finish(patches)
                    for y in range(CELLS):
                        for x in range(CELLS):
                            at = (image, slice(None), row * CELLS + y, column * CELLS + x)
                            for found, tap in zip(fine.taps, taps, strict=True):
                                close(found[at], tap[0, :, y, x].numpy())
                            close(fine.dense[at], dense[0, y * CELLS + x].numpy())


def test_what_is_seen_is_frozen_and_of_unit_length(backbone, finish):
    for level in look(backbone, finish, photos(), WINDOW, DEPTHS, "both"):
        assert not any(maps.requires_grad for maps in (*level.taps, level.dense))
        close(level.dense.norm(dim=1), np.ones((2, *level.dense.shape[2:])))


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("sides", [(1, 1), (2, 3)])
def test_views_per_image_are_those_that_there_are(views, sides):
    images = torch.zeros(2, 3, 8 * sides[0], 8 * sides[1])
    assert 2 * views_per_image(*images.shape[2:], 8, views) == len(views_of(images, 8, views))
