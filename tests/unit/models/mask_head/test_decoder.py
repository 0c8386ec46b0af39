import numpy as np
import pytest
import torch

from simzss.models.mask_head.decoder import PixelDecoder, QueryDecoder, attention_mask
from tests.support.models import shaken
from tests.unit.models.mask_head import loops
from tests.unit.models.mask_head.loops import close, noise, part, weights_of

WIDTH, QUERIES, HEADS = 8, 3, 2
SIZES = [(2, 3), (4, 6)]  # of the coarse and the fine level
MASK = (8, 12)


@pytest.mark.parametrize("upsample", [1, 2, 4, 8])
def test_pixels_equal_a_loop(upsample):
    layer = shaken(PixelDecoder(4, upsample), amount=0.3).double()
    maps, weights = noise(1 if upsample == 8 else 2, 4, 2, 3), weights_of(layer)
    for found, image in zip(layer(maps), maps.numpy(), strict=True):
        expected = loops.block(part(weights, "enter"), image)
        for number in range([1, 2, 4, 8].index(upsample)):
            own = part(weights, f"doublings.{number}")

            def normed(row: np.ndarray, own=own) -> np.ndarray:
                return loops.norm(part(own, "1"), loops.linear(part(own, "0"), row))

            expected = loops.resized(expected, (2 * expected.shape[1], 2 * expected.shape[2]))
            expected = loops.block(part(own, "2"), loops.each_position(normed, expected))
        close(found, loops.each_position(lambda row: loops.linear(part(weights, "out"), row), expected))


@pytest.mark.parametrize("size", [(2, 3), (3, 5), (8, 12), (10, 16)], ids=str)
def test_cells_inside_masks_and_everywhere_for_an_empty_one(size):
    masks = noise(2, QUERIES, *MASK)
    masks[1, 0] = -1.0
    expected = loops.resized(masks.numpy(), size, antialias=True) > 0
    expected[1, 0] = True
    assert attention_mask(masks.requires_grad_(), size).tolist() == expected.reshape(2, QUERIES, -1).tolist()


def decoder(layers: int, levels: int, masked: bool) -> QueryDecoder:
    torch.manual_seed(0)
    return shaken(QueryDecoder(WIDTH, QUERIES, layers, HEADS, levels, masked), amount=0.4).double()


def scene(levels: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    maps = [noise(2, WIDTH, *size, seed=number) for number, size in enumerate(SIZES)]
    return maps[2 - levels :], noise(2, WIDTH, *MASK, seed=5)


def by_loop(
    layer: QueryDecoder, levels: list[np.ndarray], pixels: np.ndarray, by_turns: bool = True, own_masks: bool = True
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Queries and masks of one image, after each layer; wrong on purpose without `by_turns` or `own_masks`."""
    weights = weights_of(layer)

    def norm(own: dict, name: str, rows: np.ndarray) -> np.ndarray:
        return np.array([loops.norm(part(own, name), row) for row in rows])

    def predict(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        normed = norm(weights, "norm", queries)
        vectors = np.array([loops.two_layers(part(weights, "mask"), row) for row in normed])
        return normed, np.einsum("qd,dhw->qhw", vectors, pixels)

    queries, places = weights["content"], weights["places"]
    found = [predict(queries)]
    for number in range(len(layer.layers)):
        own = part(weights, f"layers.{number}")
        turn = number % len(levels) if by_turns else len(levels) - 1
        height, width = levels[turn].shape[1:]
        features = levels[turn].reshape(WIDTH, -1).T + weights["level"][turn]
        keys = features + loops.positions(height, width, WIDTH)
        allowed = np.ones((QUERIES, height * width), dtype=bool)
        for query in range(QUERIES) if layer.masked else ():
            mask = found[-1 if own_masks else 0][1][query]
            cells = loops.resized(mask, (height, width), antialias=True).reshape(-1) > 0
            allowed[query] = cells if cells.any() else True
        crossed = loops.attention(part(own, "cross"), HEADS, queries + places, keys, features, allowed)
        queries = norm(own, "norms.0", queries + crossed)
        mixed = loops.attention(part(own, "own"), HEADS, queries + places, queries + places, queries)
        queries = norm(own, "norms.1", queries + mixed)
        queries = norm(own, "norms.2", queries + [loops.two_layers(part(own, "mix"), row) for row in queries])
        found.append(predict(queries))
    return found


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("layers", "levels"), [(1, 1), (2, 1), (1, 2), (4, 2)])
def test_layers_equal_a_loop(layers, levels, masked):
    layer = decoder(layers, levels, masked)
    maps, pixels = scene(levels)
    found = layer(maps, pixels)
    assert len(found) == layers + 1
    for image in range(2):
        expected = by_loop(layer, [own[image].numpy() for own in maps], pixels[image].numpy())
        for (queries, masks), (wanted, wanted_masks) in zip(found, expected, strict=True):
            close(queries[image], wanted, 1e-5)  # positions have 24 bits
            close(masks[image], wanted_masks, 1e-5)


@pytest.mark.parametrize("wrong", [{"by_turns": False}, {"own_masks": False}], ids=str)
def test_the_loop_tells_levels_and_masks_of_the_layer_before_apart(wrong):
    layer = decoder(4, 2, masked=True)
    maps, pixels = scene(2)
    expected = by_loop(layer, [own[0].numpy() for own in maps], pixels[0].numpy(), **wrong)
    assert np.abs(layer(maps, pixels)[-1][1][0].detach().numpy() - expected[-1][1]).max() > 1e-2


def test_everything_learns():
    layer = decoder(2, 2, masked=True)
    torch.stack([queries.sum() + masks.square().sum() for queries, masks in layer(*scene(2))]).sum().backward()
    size = {name: float(own.grad.abs().max()) for name, own in layer.named_parameters()}
    # What is the same for all keys cancels in the softmax.
    assert {name for name in size if size[name] < 1e-6} == {name for name in size if name.endswith("key.bias")}
