"""Stitched windows, aggregation and proxies in a `Segmenter`, patch by patch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from simzss.segmentation.inference.aggregate import aggregate
from simzss.segmentation.prompts import embed_names, templates
from simzss.segmentation.settings import AggregateSettings
from tests.support.files import picture
from tests.support.models import refused
from tests.unit.models.sam.tiny import PATCH, SIDE
from tests.unit.segmentation.small import NAMES, model_of, pixels_of, segmenter


def resolved(kind: str) -> AggregateSettings:
    return AggregateSettings(kind=kind, cos_factor=1.2, parts=1)


def patch_map(features: str, pixels: torch.Tensor) -> torch.Tensor:
    """(C, h, w) before the last norm, of one image or window."""
    return model_of(features).backbone.patch_map(pixels[None])[0]


def cosines(features: str, maps: torch.Tensor) -> np.ndarray:
    """(K, h, w) of a map of patches before the last norm, patch by patch in float64."""
    model = model_of(features)
    names = embed_names(model, NAMES, templates("photo"), "tokens").double().numpy()
    norm = model.backbone.model.norm
    grid = np.zeros((len(NAMES), *maps.shape[1:]))
    for y in range(maps.shape[1]):
        for x in range(maps.shape[2]):
            patch = maps[:, y, x].double().numpy()
            if features != "last":
                patch = (patch - patch.mean()) / np.sqrt(patch.var() + norm.eps)
                patch = patch * norm.weight.detach().double().numpy() + norm.bias.detach().double().numpy()
            grid[:, y, x] = names @ patch / np.sqrt((patch**2).sum())
    return grid


def enlarged(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """(K, h, w) -> (K, H, W), bilinear."""
    return F.interpolate(torch.from_numpy(grid)[None], (height, width), mode="bilinear")[0].numpy()


def assert_scores(found, grid: np.ndarray, image: Image.Image) -> None:
    """The prediction's logits are these cosines (K, h, w) at the photo's size, over the temperature."""
    expected = enlarged(grid, image.height, image.width) / 0.05
    np.testing.assert_allclose(found.logits.numpy(), expected, rtol=0, atol=2e-3)
    assert torch.equal(found.mask, found.logits.argmax(dim=0))


# Stitched -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["last", "self"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_windows_are_stitched_before_the_norm(features, batch_size):
    """Cells of 16 pixels in windows of 64, 32 apart: a cell is the mean over the windows that its centre lies in."""
    image = picture(6, (128, 64))
    pixels = pixels_of(image)
    assert pixels.shape == (3, 64, 128)
    windows = {left: patch_map(features, pixels[:, :, left : left + 64]) for left in (0, 32, 64)}
    whole = torch.zeros(64, 4, 8)
    for y in range(4):
        for x in range(8):
            cells = [cells[:, y, x - left // 16] for left, cells in windows.items() if left <= 16 * x + 8 < left + 64]
            assert len(cells) == (1, 1, 2, 2, 2, 2, 1, 1)[x]
            whole[:, y, x] = sum(cells) / len(cells)
    found = segmenter("stitch", features=features, batch_size=batch_size).predict(image, NAMES)
    assert_scores(found, cosines(features, whole), image)
    slides = segmenter("slide", features=features).predict(image, NAMES)
    assert (slides.logits - found.logits).abs().max() > 0.01  # which averages scores


@pytest.mark.parametrize("size", [(64, 64), (30, 30), (97, 64), (64, 80)])
def test_one_stitched_window_is_the_whole(size):
    image = picture(5, size)
    whole = segmenter().predict(image, NAMES)
    stitched = segmenter("stitch", crop_size=128, stride=64).predict(image, NAMES)
    torch.testing.assert_close(stitched.logits, whole.logits, rtol=1e-4, atol=1e-4)
    assert (stitched.mask == whole.mask).float().mean() > 0.999
    refused(lambda: segmenter("stitch", crop_size=70), "70", "16")  # a window must fit the stride


# Aggregated -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sam", "attention", "embedding", "patches"])
@pytest.mark.parametrize("inference", ["whole", "stitch"])
def test_features_are_aggregated_before_the_norm(sam, inference, kind):
    image = picture(3, (64, 50))
    maps = patch_map("self", pixels_of(image))
    if inference == "stitch":
        assert pixels_of(image).shape == (3, 64, 80)
        left, right = (patch_map("self", pixels_of(image)[:, :, start : start + 64]) for start in (0, 16))
        maps = torch.cat([left[:, :, :1], (left[:, :, 1:] + right[:, :, :-1]) / 2, right[:, :, -1:]], dim=2)
    seen = [] if kind == "patches" else [sam.encode(sam.resize(image), attention=True)]
    expected = aggregate(maps, seen, resolved("attention" if kind == "sam" else kind))
    options = {"features": "self", "stride": 16}
    found = segmenter(inference, aggregate=kind, sam=sam, **options).predict(image, NAMES)
    assert_scores(found, cosines("self", expected), image)
    assert (segmenter(inference, **options).predict(image, NAMES).logits - found.logits).abs().max() > 0.05


def test_sam_without_attention_aggregates_by_its_embedding(sams):
    image, second = picture(3, (64, 50)), sams["second"]
    maps = aggregate(patch_map("last", pixels_of(image)), [second.encode(second.resize(image))], resolved("embedding"))
    assert_scores(segmenter(aggregate="sam", sam=second).predict(image, NAMES), cosines("last", maps), image)
    refused(lambda: segmenter(aggregate="attention", sam=second), "aggregate.kind=attention", "use embedding")


@pytest.mark.parametrize("size", [(128, 64), (64, 128), (64, 64), (64, 66), (66, 64)])
def test_sam_sees_parts(sam, size):
    """Two along the longer side of the photo, though its grid of patches be square."""
    image = picture(4, size)
    maps, (width, height) = patch_map("last", pixels_of(image)), size
    if width >= height:
        boxes, dim = [(0, 0, width // 2, height), (width // 2, 0, width, height)], 2
    else:
        boxes, dim = [(0, 0, width, height // 2), (0, height // 2, width, height)], 1
    pieces = [
        aggregate(part, [sam.encode(sam.resize(image.crop(box)), attention=True)], resolved("attention"))
        for part, box in zip(maps.chunk(2, dim=dim), boxes, strict=True)
    ]
    found = segmenter(aggregate=AggregateSettings(kind="attention", parts=2), sam=sam).predict(image, NAMES)
    assert_scores(found, cosines("last", torch.cat(pieces, dim=dim)), image)


@pytest.mark.parametrize("size", [(51, 11), (11, 51), (3, 2), (1, 1), (101, 37)])
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_odd_photos(sam, size, parts):
    made = segmenter(aggregate=AggregateSettings(kind="sam", parts=parts), sam=sam)
    found = made.predict(picture(4, size), NAMES)
    assert found.mask.shape == size[::-1] and found.logits.isfinite().all()


@pytest.mark.parametrize("kind", ["attention", "patches"])
def test_windows_of_scores_cannot_be_aggregated(sam, kind):
    refused(lambda: segmenter("slide", aggregate=kind, sam=sam), f"aggregate={kind}", "whole and stitch", "not slide")


# Proxy ----------------------------------------------------------------------------------------------------------------


def proxy_of(embedding: np.ndarray, cells: tuple[float, float], left: int, shape: tuple[int, int]) -> torch.Tensor:
    """The embedding as a window of 64 pixels from `left` sees it, its centres found cell by cell."""
    rows, columns = round(cells[0]), round(64 * cells[1] / shape[1])
    found = np.zeros((len(embedding), rows, columns))
    for row in range(rows):
        for column in range(columns):
            y = (row + 0.5) / rows * cells[0]
            x = (left + (column + 0.5) / columns * 64) * cells[1] / shape[1]
            y, x = (min(max(at, 0.5), length - 0.5) for at, length in zip((y, x), embedding.shape[1:], strict=True))
            down = np.maximum(0, 1 - np.abs(np.arange(embedding.shape[1]) + 0.5 - y))
            across = np.maximum(0, 1 - np.abs(np.arange(embedding.shape[2]) + 0.5 - x))
            found[:, row, column] = np.einsum("chw,h,w->c", embedding, down, across)
    return torch.from_numpy(found).float()


@pytest.mark.parametrize(("width", "lefts"), [(64, [0]), (96, [0, 32]), (128, [0, 32, 64])])
def test_windows_are_guided_by_their_part_of_the_embedding(sam, width, lefts):
    image, made = picture(7, (width, 64)), segmenter("slide", sam=sam, features="proxy")
    scale = SIDE / max(width, 64)
    cells = (int(64 * scale + 0.5) / PATCH, int(width * scale + 0.5) / PATCH)
    embedding = sam.encode(sam.resize(image)).embedding.double().numpy()
    total, count = np.zeros((3, 64, width)), np.zeros(width)
    for left in lefts:
        proxy = proxy_of(embedding, cells, left, (64, width))
        maps = made.model.backbone.patch_map(pixels_of(image)[None, :, :, left : left + 64], proxy[None])[0]
        total[:, :, left : left + 64] += enlarged(cosines("proxy", maps), 64, 64)
        count[left : left + 64] += 1
    np.testing.assert_allclose(made.predict(image, NAMES).logits.numpy(), total / count / 0.05, rtol=0, atol=2e-3)


def test_proxy_of_a_whole_photo(sam):
    """A photo of 96 x 64 is encoded as 64 x 43, which is 8 cells by 5.375: the proxy has 5 rows of equal height."""
    image = picture(7, (96, 64))
    embedding = sam.encode(sam.resize(image)).embedding
    rows = [(row + 0.5) / 5 * 5.375 - 0.5 for row in range(5)]
    parts = [torch.lerp(embedding[:, int(at)], embedding[:, int(at) + 1], at - int(at)) for at in rows]
    maps = model_of("proxy").backbone.patch_map(pixels_of(image)[None], torch.stack(parts, dim=1)[None])[0]
    assert maps.shape == (64, 5, 8)
    found = segmenter(sam=sam, features="proxy").predict(image, NAMES)
    assert_scores(found, cosines("proxy", maps), image)
