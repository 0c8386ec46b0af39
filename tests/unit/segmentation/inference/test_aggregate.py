"""Features averaged over what belongs together, against loops in float64."""

import math

import numpy as np
import pytest
import torch

import simzss.segmentation.inference.aggregate as module
from simzss.models.sam.sam import LastAttention, SamEncoding
from simzss.segmentation.inference.aggregate import aggregate, attention_rows, similarity_rows
from simzss.segmentation.settings import AggregateSettings

HEADS, DEPTH = 2, 4


def noise(*shape: int, seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean


def attention(grid: tuple[int, int], frame: tuple[int, int] | None = None, seed: int = 0) -> LastAttention:
    """Values that are more alike than not, and an attention that a frame larger than the grid takes part in."""
    frame, cells = frame or grid, grid[0] * grid[1]
    values, queries = noise(HEADS, cells, DEPTH, seed=seed, mean=0.6), noise(HEADS, cells, DEPTH, seed=seed + 1)
    return LastAttention(grid, values, queries, noise(HEADS, frame[0] * frame[1], DEPTH, seed=seed + 2), frame)


def encoding(cells: tuple[float, float], seed: int = 0, frame: tuple[int, int] | None = None) -> SamEncoding:
    """Of an image of so many cells, fractions included."""
    grid = (math.ceil(cells[0]), math.ceil(cells[1]))
    embedding = noise(5, *grid, seed=seed + 3, mean=0.4)
    return SamEncoding(embedding, attention(grid, frame, seed), cells, embedding[None])


def settings(kind: str) -> AggregateSettings:
    return AggregateSettings(kind=kind, cos_factor=1.2, temperature=0.1, parts=1)


# By loops -------------------------------------------------------------------------------------------------------------


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / math.sqrt((one**2).sum() * (other**2).sum()))


def cosines(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    return np.array([[cosine(one, other) for other in keys] for one in queries])


def weights_of(last: LastAttention) -> np.ndarray:
    """(heads, N, N) float64: a softmax over all cells of the frame, of which those of the image are kept."""
    queries, keys = last.queries.double().numpy(), last.keys.double().numpy()
    count = last.grid[0] * last.grid[1]
    kept = [row * last.frame[1] + column for row in range(last.grid[0]) for column in range(last.grid[1])]
    found = np.zeros((len(queries), count, count))
    for head in range(len(queries)):
        for one in range(count):
            exponents = np.array([math.exp(queries[head, one] @ key / math.sqrt(DEPTH)) for key in keys[head]])
            found[head, one] = exponents[kept] / exponents.sum()
    return found


def by_attention(weights: np.ndarray, values: np.ndarray, cos_factor: float) -> np.ndarray:
    """(N, N) float64 matrix, cell by cell."""
    heads, count, _ = values.shape
    total = np.zeros((count, count))
    for head in range(heads):
        alike = cosines(values[head], values[head])
        threshold = min(cos_factor * alike.mean(), 0.9)
        for one in range(count):
            for other in range(count):
                if alike[one, other] > threshold:
                    total[one, other] += weights[head, one, other] / heads
    return np.array([row / row.sum() for row in total])


def by_similarity(queries: np.ndarray, keys: np.ndarray, cos_factor: float, temperature: float) -> np.ndarray:
    """(N, M) float64 matrix, cell by cell."""
    alike = cosines(queries, keys)
    threshold = min(cos_factor * alike.mean(), 0.9)
    found = np.zeros_like(alike)
    for one, row in enumerate(alike):
        for other, value in enumerate(row):
            if value > threshold or value == row.max():
                found[one, other] = math.exp(value / temperature)
        found[one] /= found[one].sum()
    return found


def sampled(maps: np.ndarray, y: float, x: float) -> np.ndarray:
    """(C,) bilinear value at a place counted in cells from the corner: hats around the centres of all cells."""
    y = min(max(y, 0.5), maps.shape[1] - 0.5)
    x = min(max(x, 0.5), maps.shape[2] - 0.5)
    down = np.maximum(0, 1 - np.abs(np.arange(maps.shape[1]) + 0.5 - y))
    across = np.maximum(0, 1 - np.abs(np.arange(maps.shape[2]) + 0.5 - x))
    return np.einsum("chw,h,w->c", maps, down, across)


def on_grid(features: np.ndarray, matrix: np.ndarray, cells: tuple[float, float]) -> np.ndarray:
    """Features (C, h, w) at SAM's cells, averaged by a matrix, at cells that divide the image evenly."""
    rows, columns = math.ceil(cells[0]), math.ceil(cells[1])
    values = [
        sampled(features, (row + 0.5) / cells[0] * features.shape[1], (column + 0.5) / cells[1] * features.shape[2])
        for row in range(rows)
        for column in range(columns)
    ]
    averaged = np.zeros((len(values), len(features)))
    for one in range(len(values)):
        for other in range(len(values)):
            averaged[one] += matrix[one, other] * values[other]
    maps = averaged.T.reshape(-1, rows, columns)
    height, width = max(1, round(cells[0])), max(1, round(cells[1]))
    out = np.zeros((len(features), height, width))
    for row in range(height):
        for column in range(width):
            out[:, row, column] = sampled(maps, (row + 0.5) / height * cells[0], (column + 0.5) / width * cells[1])
    return out


def matrix_of(seen: SamEncoding, chosen: AggregateSettings) -> np.ndarray:
    if chosen.kind == "attention":
        return by_attention(weights_of(seen.attention), seen.attention.values.double().numpy(), chosen.cos_factor)
    own = seen.embedding.double().flatten(1).T.numpy()
    return by_similarity(own, own, chosen.cos_factor, chosen.temperature)


# The matrix -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [(3, 4), (5, 6)])
@pytest.mark.parametrize("cos_factor", [0.0, 0.8, 1.2, 100.0])
def test_attention_counts_where_values_are_alike(cos_factor, frame):
    last = attention((3, 4), frame)
    found = torch.cat(list(attention_rows(last, cos_factor)))
    expected = by_attention(weights_of(last), last.values.double().numpy(), cos_factor)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
    assert cos_factor == 0 or 0 < (expected == 0).sum() < expected.size  # some cells are left out, others are not


def test_threshold_has_an_upper_bound():
    """However high the factor, a cell looks at those whose values are all but its own."""
    last = attention((3, 4))
    alike = last.values[:, :1] * torch.linspace(1, 2, 12)[None, :, None]
    last = LastAttention(last.grid, alike, last.queries, last.keys, last.frame)
    found = torch.cat(list(attention_rows(last, 100.0)))
    expected = last.rows(0, 12).mean(dim=0)
    torch.testing.assert_close(found, expected / expected.sum(dim=1, keepdim=True))


def test_cell_that_attends_to_none_of_its_like_has_a_row_too():
    """In float32 the softmax of a cell rounds to nothing everywhere but where the values are unlike its own."""
    keys = torch.tensor([0.0, 0.0, 0.0, 10.0])[None, :, None]
    last = LastAttention((2, 2), torch.eye(4)[None], torch.full((1, 4, 1), 20.0), keys, (2, 2))
    assert last.rows(0, 1).flatten().tolist() == [0, 0, 0, 1]
    found = torch.cat(list(attention_rows(last, 1.2)))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize(("count", "keys"), [(12, 12), (12, 5), (1, 7), (7, 1)])
@pytest.mark.parametrize(("cos_factor", "temperature"), [(0.0, 0.1), (1.2, 0.1), (1.2, 1.0), (100.0, 0.05)])
def test_similarities_as_weights(count, keys, cos_factor, temperature):
    queries, others = noise(count, 4, seed=1, mean=0.5), noise(keys, 4, seed=2, mean=0.5)
    found = torch.cat(list(similarity_rows(queries, others, cos_factor, temperature)))
    expected = by_similarity(queries.double().numpy(), others.double().numpy(), cos_factor, temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


def test_cell_unlike_all_others_looks_at_the_one_most_like_it():
    keys = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, -0.1]])
    (found,) = similarity_rows(torch.tensor([[-1.0, 0.0], [2.0, 0.2]]), keys, 1.2, 0.1)
    assert found[0].tolist() == [0, 1, 0]
    assert found[1].min() > 0.1


@pytest.mark.parametrize("elements", [1, 50, 2**22])
def test_rows_at_a_time_change_nothing(monkeypatch, elements):
    """Rows of 24 weights in two heads; 50 elements are one row of them, or two of similarities."""
    last, vectors = attention((4, 6)), noise(24, 5, mean=0.5)
    whole = [torch.cat(list(attention_rows(last, 1.2))), torch.cat(list(similarity_rows(vectors, vectors, 1.2, 0.1)))]
    monkeypatch.setattr(module, "_CHUNK", elements)
    parts = [list(attention_rows(last, 1.2)), list(similarity_rows(vectors, vectors, 1.2, 0.1))]
    assert [len(rows) for rows in parts] == {1: [24, 24], 50: [24, 12], 2**22: [1, 1]}[elements]
    for rows, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(torch.cat(rows), expected, rtol=1e-5, atol=1e-7)


# Features on SAM's grid -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["attention", "embedding"])
@pytest.mark.parametrize(
    ("cells", "shape"),
    [
        ((4.0, 4.0), (4, 4)),
        ((4.0, 4.0), (9, 11)),  # finer than SAM's
        ((4.0, 6.0), (2, 3)),  # coarser
        ((3.375, 5.0), (5, 4)),  # the last row lies partly outside
        ((5.0, 2.75), (7, 3)),
        ((2.5, 1.5), (3, 3)),
        ((1.0, 1.0), (3, 2)),  # one cell
        ((0.125, 6.0), (1, 5)),  # a photo of one row
        ((4.0, 0.125), (6, 1)),
    ],
)
def test_features_are_averaged_on_the_grid_of_sam(kind, cells, shape):
    features, seen, chosen = noise(3, *shape, seed=9), encoding(cells, frame=(6, 6)), settings(kind)
    found = aggregate(features, [seen], chosen)
    expected = on_grid(features.double().numpy(), matrix_of(seen, chosen), cells)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "embedding"])
@pytest.mark.parametrize(
    ("shape", "parts", "cells"),
    [
        ((4, 8), 2, (4.0, 4.0)),
        ((4, 4), 2, (4.0, 2.0)),  # a square is cut from left to right
        ((9, 5), 3, (3.0, 5.0)),
        ((3, 7), 2, (3.0, 3.5)),  # parts end within a cell of the features
        ((7, 2), 3, (2.5, 1.75)),
    ],
)
def test_parts_are_averaged_each_by_itself(kind, shape, parts, cells):
    """Along the longer side; what lies beyond the edge of a part has no say in it."""
    features, chosen = noise(3, *shape, seed=9), settings(kind)
    seen = [encoding(cells, seed=10 * number) for number in range(parts)]
    across = shape[1] >= shape[0]
    length = shape[1] if across else shape[0]
    count = round(length / parts)
    maps, pieces = features.double().numpy(), []
    for number in range(parts):
        part = np.zeros((3, shape[0], count) if across else (3, count, shape[1]))
        for row in range(part.shape[1]):
            for column in range(part.shape[2]):
                along = number * length / parts + ((column if across else row) + 0.5) * length / parts / count
                y, x = (row + 0.5, along) if across else (along, column + 0.5)
                part[:, row, column] = sampled(maps, y, x)
        pieces.append(on_grid(part, matrix_of(seen[number], chosen), cells))
    found = aggregate(features, seen, chosen)
    np.testing.assert_allclose(found.numpy(), np.concatenate(pieces, axis=2 if across else 1), rtol=0, atol=1e-5)


def test_parts_of_almost_the_same_size_make_one_map():
    """A photo whose length is no multiple of the parts: their cells need not be as many, by rounding."""
    seen = [encoding((2.51, 4.0)), encoding((2.49, 4.0), seed=10)]
    found = aggregate(torch.ones(3, 3, 8), seen, settings("attention"))
    assert found.shape[0] == 3 and found.shape[1] in (2, 3) and found.shape[2] == 8
    torch.testing.assert_close(found, torch.ones_like(found))


@pytest.mark.parametrize("shape", [(4, 5), (1, 1), (1, 6), (70, 2)])
def test_features_are_averaged_by_their_own_similarity(shape):
    """On their own grid; of more than 64 cells along a side, means of neighbours are looked at."""
    features, chosen = noise(3, *shape, seed=9, mean=0.5), settings("patches")
    maps = features.double().numpy()
    rows, columns = min(shape[0], 64), min(shape[1], 64)
    keys = np.zeros((rows * columns, 3))
    for row in range(rows):
        for column in range(columns):
            span = slice(row * shape[0] // rows, -(-(row + 1) * shape[0] // rows))
            keys[row * columns + column] = maps[:, span, column].mean(axis=1)
    matrix = by_similarity(maps.reshape(3, -1).T, keys, 1.2, 0.1)
    found = aggregate(features, [], chosen)
    np.testing.assert_allclose(found.numpy(), (matrix @ keys).T.reshape(3, *shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "embedding", "patches"])
def test_digits_constants_and_rows_at_a_time(monkeypatch, kind):
    """Few digits are averaged in float32; equal features stay as they are; some rows at a time change nothing."""
    features, chosen = noise(3, 5, 6), settings(kind)
    seen = [] if kind == "patches" else [encoding((3.5, 4.0))]
    few = features.bfloat16()
    found = aggregate(few, seen, chosen)
    assert found.dtype == torch.float32 and torch.equal(found, aggregate(few.float(), seen, chosen))
    equal = aggregate(features[:, :1, :1].expand(3, 5, 6), seen, chosen)
    torch.testing.assert_close(equal, features[:, :1, :1].expand_as(equal), rtol=1e-5, atol=1e-6)
    whole = aggregate(features, seen, chosen)
    monkeypatch.setattr(module, "_CHUNK", 60)
    torch.testing.assert_close(aggregate(features, seen, chosen), whole, rtol=1e-5, atol=1e-6)
