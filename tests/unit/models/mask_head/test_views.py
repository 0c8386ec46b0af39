import numpy as np
import pytest
import torch

from simzss.models.feature_norm import FeatureNorm
from simzss.models.mask_head.views import encode_views, make_views, merge_windows, slice_windows, views_per_image
from tests.support.models import make_backbone, refused, shaken
from tests.unit.models.mask_head import loops
from tests.unit.models.mask_head.loops import close, noise

VIEWS = ("both", "global", "windows")
WINDOW, ROWS, COLUMNS, CELLS = 32, 2, 3, 2
DEPTHS = (0, 2, 5)


def photos(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (3, 1), (2, 3), (4, 2)])
def test_every_pixel_goes_to_its_window_and_back(rows, columns):
    images = torch.arange(2 * 3 * rows * columns * 16).view(2, 3, 4 * rows, 4 * columns)
    windows = slice_windows(images, 4)
    assert windows.shape == (2 * rows * columns, 3, 4, 4) and merge_windows(windows, rows, columns).equal(images)
    for image in range(2):
        for y in range(4 * rows):
            for x in range(4 * columns):
                number = image * rows * columns + y // 4 * columns + x // 4
                assert windows[number, :, y % 4, x % 4].equal(images[image, :, y, x])


@pytest.mark.parametrize(("height", "width"), [(8, 6), (6, 8), (3, 8), (0, 4), (4, 0)])
def test_an_image_that_is_not_made_of_windows(height, width):
    refused(lambda: slice_windows(torch.zeros(1, 3, height, width), 4), f"{height} x {width}", "4 x 4")


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("views", VIEWS)
def test_whole_images_then_windows(views, integers):
    images = photos(2, 8, 12) if integers else photos(2, 8, 12) / 255
    found = make_views(images, 4, views)
    whole = 0 if views == "windows" else 2
    assert found.dtype == images.dtype and len(found) == 2 * views_per_image(8, 12, 4, views)
    if whole:
        small = loops.resized(images.double().numpy(), (4, 4), antialias=True)
        close(found[:2], np.rint(small) if integers else small, 1e-6)
    assert found[whole:].equal(slice_windows(images, 4) if views != "global" else found[:0])


@pytest.fixture(scope="module", params=["last", "self"])
def backbone(request):
    made = make_backbone(features=request.param)
    shaken(made.model)
    return made.double()


@pytest.mark.parametrize("views", VIEWS)
def test_levels_are_each_view_encoded_alone_by_one_forward(backbone, views):
    norm = FeatureNorm("center", 64).double()
    norm.patch_mean.copy_(noise(64))
    images, batches = photos(2, ROWS * WINDOW, COLUMNS * WINDOW), []
    parts = (backbone.model.patch_embed, backbone.model.blocks[0])
    hooks = [part.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0]))) for part in parts]
    levels = encode_views(backbone, norm.patches, images, WINDOW, DEPTHS, views)
    for hook in hooks:
        hook.remove()
    assert batches == [2 * views_per_image(*images.shape[2:], WINDOW, views)] * 2  # the stem once, the blocks once
    assert len(levels) == (2 if views == "both" else 1)

    whole = [([make_views(images, WINDOW, "global")[i]], (1, 1)) for i in range(2)]
    windows = [(list(slice_windows(images[i : i + 1], WINDOW)), (ROWS, COLUMNS)) for i in range(2)]
    expected = {"both": (whole, windows), "global": (whole,), "windows": (windows,)}[views]
    for level, one in zip(levels, expected, strict=True):
        assert not any(maps.requires_grad for maps in (*level.intermediates, level.dense))
        for image, (cuts, (rows, columns)) in enumerate(one):
            for number, window in enumerate(cuts):
                intermediates, patches, grid = backbone.intermediates(window[None], DEPTHS)
                top, left = number // columns * CELLS, number % columns * CELLS
                place = (image, slice(None), slice(top, top + CELLS), slice(left, left + CELLS))
                for found, alone in zip(level.intermediates, intermediates, strict=True):
                    assert found.shape[2:] == (rows * CELLS, columns * CELLS)
                    close(found[place], alone[0].numpy())
                close(level.dense[place], norm.patches(patches)[0].mT.unflatten(1, grid).numpy())
