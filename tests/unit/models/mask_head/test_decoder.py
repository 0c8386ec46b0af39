import numpy as np
import pytest
import torch

from simzss.models.mask_head.decoder import PixelDecoder, QueryDecoder, inside
from tests.support.models import shaken
from tests.unit.models.mask_head import loops
from tests.unit.models.mask_head.loops import close, noise, part, weights_of

WIDTH, QUERIES, HEADS = 8, 3, 2
SIZES = [(2, 3), (4, 6)]  # of the coarse and the fine level
MASK = (8, 12)


# Pixels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upsample", [1, 2, 4, 8])
def test_pixels_equal_a_loop(upsample):
    layer = shaken(PixelDecoder(4, upsample), amount=0.3).double()
    maps = noise(2, 4, 2, 3)
    found = layer(maps)
    assert found.shape == (2, 4, 2 * upsample, 3 * upsample)
    weights = weights_of(layer)
    for image in range(2 if upsample < 8 else 1):
        expected = loops.block(part(weights, "enter"), maps[image].numpy())
        for number in range([1, 2, 4, 8].index(upsample)):
            own = part(weights, f"doublings.{number}")
            expected = loops.resized(expected, (2 * expected.shape[1], 2 * expected.shape[2]))
            expected = loops.each_place(
                lambda row, own=own: loops.norm(part(own, "1"), loops.linear(part(own, "0"), row)), expected
            )
            expected = loops.block(part(own, "2"), expected)
        close(found[image], loops.each_place(lambda row: loops.linear(part(weights, "out"), row), expected))


# Cells inside masks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(2, 3), (3, 5), (8, 12), (10, 16)], ids=str)
def test_cells_inside_masks(size):
    masks = noise(2, 3, *MASK)
    found = inside(masks, size)
    assert found.shape == (2, 3, size[0] * size[1]) and found.dtype == torch.bool
    expected = loops.resized(masks.numpy(), size, antialias=True) > 0
    assert expected.reshape(2, 3, -1).any(axis=2).all()
    assert found.tolist() == expected.reshape(2, 3, -1).tolist()


def test_a_mask_that_is_nowhere_looks_everywhere():
    masks = torch.full((1, 3, 4, 4), -1.0)
    masks[0, 1, :2, :2] = 5.0
    masks[0, 2] = 0.0
    assert inside(masks.requires_grad_(), (2, 2)).tolist() == [[[True] * 4, [True, False, False, False], [True] * 4]]


# Queries --------------------------------------------------------------------------------------------------------------


def decoder(layers: int, levels: int, masked: bool) -> QueryDecoder:
    torch.manual_seed(0)
    return shaken(QueryDecoder(WIDTH, QUERIES, layers, HEADS, levels, masked), amount=0.4).double()


def scene(levels: int, count: int = 2) -> tuple[list[torch.Tensor], torch.Tensor]:
    maps = [noise(count, WIDTH, *size, seed=number) for number, size in enumerate(SIZES)]
    return maps[2 - levels :], noise(count, WIDTH, *MASK, seed=5)


def rounds_by_loop(
    layer: QueryDecoder, levels: list[np.ndarray], pixels: np.ndarray, by_turns: bool = True, own_masks: bool = True
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Queries and masks of one image, after each round; wrong on purpose without `by_turns` or `own_masks`."""
    weights = weights_of(layer)

    def said(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        normed = np.array([loops.norm(part(weights, "norm"), row) for row in queries])
        masks = np.zeros((QUERIES, *MASK))
        for query in range(QUERIES):
            vector = loops.two_layers(part(weights, "mask"), normed[query])
            for y in range(MASK[0]):
                for x in range(MASK[1]):
                    masks[query, y, x] = vector @ pixels[:, y, x]
        return normed, masks

    queries = weights["content"]
    places = weights["places"]
    found = [said(queries)]
    for number in range(len(layer.layers)):
        own = part(weights, f"layers.{number}")
        turn = number % len(levels) if by_turns else len(levels) - 1
        level = levels[turn]
        height, width = level.shape[1:]
        features = np.array([level[:, y, x] for y in range(height) for x in range(width)])
        features = features + weights["level"][turn]
        keys = features + loops.positions(height, width, WIDTH)
        allowed = np.ones((QUERIES, height * width), dtype=bool)
        if layer.masked:
            masks = found[-1 if own_masks else 0][1]
            for query in range(QUERIES):
                cells = loops.resized(masks[query], (height, width), antialias=True).reshape(-1) > 0
                if cells.any():
                    allowed[query] = cells
        crossed = loops.attention(part(own, "cross"), HEADS, queries + places, keys, features, allowed)
        queries = np.array([loops.norm(part(own, "norms.0"), row) for row in queries + crossed])
        mixed = loops.attention(part(own, "own"), HEADS, queries + places, queries + places, queries)
        queries = np.array([loops.norm(part(own, "norms.1"), row) for row in queries + mixed])
        thought = np.array([loops.two_layers(part(own, "mix"), row) for row in queries])
        queries = np.array([loops.norm(part(own, "norms.2"), row) for row in queries + thought])
        found.append(said(queries))
    return found


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("layers", "levels"), [(1, 1), (2, 1), (1, 2), (4, 2)])
def test_rounds_equal_a_loop(layers, levels, masked):
    layer = decoder(layers, levels, masked)
    maps, pixels = scene(levels)
    found = layer(maps, pixels)
    assert len(found) == layers + 1
    for image in range(2):
        expected = rounds_by_loop(layer, [own[image].numpy() for own in maps], pixels[image].numpy())
        for (queries, masks), (wanted, wanted_masks) in zip(found, expected, strict=True):
            close(queries[image], wanted, 1e-5)  # positions have 24 bits
            close(masks[image], wanted_masks, 1e-5)


@pytest.mark.parametrize("wrong", [{"by_turns": False}, {"own_masks": False}], ids=str)
def test_levels_take_turns_and_masks_are_those_of_the_round_before(wrong):
    layer = decoder(4, 2, masked=True)
    maps, pixels = scene(2, count=1)
    expected = rounds_by_loop(layer, [own[0].numpy() for own in maps], pixels[0].numpy(), **wrong)
    assert np.abs(layer(maps, pixels)[-1][1][0].detach().numpy() - expected[-1][1]).max() > 1e-2


@pytest.mark.parametrize("masked", [True, False])
def test_cells_outside_the_mask_have_no_influence(masked):
    """Queries look at one another, so outside means outside of all masks."""
    layer = decoder(1, 1, masked)
    maps, pixels = scene(1, count=1)
    masks = layer(maps, pixels)[0][1]
    wanted = torch.zeros(1, QUERIES, *MASK, dtype=torch.float64)
    for query in range(QUERIES):
        wanted[0, query] = -1.0
        wanted[0, query, 2 * query : 2 * query + 2, :6] = 1.0
    # Pixels whose product with the queries' vectors gives the masks that are wanted.
    vectors = layer.mask(layer.norm(layer.content))
    pixels = torch.einsum("dq,bqhw->bdhw", torch.linalg.pinv(vectors), wanted)
    before = layer(maps, pixels)
    torch.testing.assert_close(before[0][1], wanted)
    assert (masks - wanted).abs().max() > 1e-3
    seen = inside(wanted, SIZES[1]).any(dim=1)[0].tolist()
    assert 0 < sum(seen) < len(seen)
    for cell in range(len(seen)):
        other = maps[0].clone()
        other[0, :, cell // SIZES[1][1], cell % SIZES[1][1]] += 2.0
        moved = bool((layer([other], pixels)[1][0] - before[1][0]).abs().max() > 1e-6)
        assert moved == (seen[cell] or not masked), cell


def test_everything_learns():
    layer = decoder(2, 2, masked=True)
    torch.stack([queries.sum() + masks.square().sum() for queries, masks in layer(*scene(2))]).sum().backward()
    size = {name: float(own.grad.abs().max()) for name, own in layer.named_parameters() if own.grad is not None}
    assert size.keys() == dict(layer.named_parameters()).keys()
    # What is the same for all keys cancels in the softmax.
    idle = {name for name, value in size.items() if value < 1e-6}
    assert idle == {name for name in size if name.endswith("key.bias")}


def test_the_vector_of_a_level_matters():
    layer = decoder(2, 2, masked=True)
    before = layer(*scene(2))[-1][0]
    with torch.no_grad():
        layer.level += noise(2, WIDTH, seed=8)
    assert (layer(*scene(2))[-1][0] - before).abs().max() > 1e-3
