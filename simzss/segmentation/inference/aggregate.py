"""Features averaged over the cells that belong together, by a correlation matrix (Trident, Shi et al. 2024, 3.3).

The matrix comes from the last global attention of a SAM encoder, from the similarities of a SAM's image embedding (for
those whose attention never spans the image, such as MobileSAM and SAM 2), or from those of the features themselves. It
is made some rows at a time: as a whole, and for each head, it would take gigabytes.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.models.sam.sam import LastAttention, SamEncoding
from simzss.models.sam.sampling import bilinear, centres
from simzss.segmentation.settings import AggregateSettings

_HIGHEST = 0.9  # threshold: above it hardly a cell would keep another one
_CHUNK = 2**22  # elements of a matrix, over all heads, at a time
_KEYS = 64  # cells along a side that the features' own similarity looks at: those of SAM


def aggregate(
    features: Tensor, encodings: list[SamEncoding], settings: AggregateSettings, photo: tuple[int, int] | None = None
) -> Tensor:
    """Average features over the cells that belong together.

    Args:
        features: (C, h, w) of the whole image.
        encodings: SAM's of the image, or of its parts from left to right or from top to bottom; empty for `patches`.
        settings: resolved.
        photo: height and width of the photo, whose longer side was divided; None: as of the features, which may have
            been rounded to a square.

    Returns:
        (C, h', w') float32: on SAM's grid, or on that of the features for `patches`.
    """
    assert settings.cos_factor is not None
    features = features.float()
    if settings.kind == "patches":
        keys = _reduced(features)
        rows = similarity_rows(features.flatten(1).T, keys.flatten(1).T, settings.cos_factor, settings.temperature)
        return _product(rows, keys).unflatten(1, features.shape[1:])
    height, width = photo or features.shape[1:]
    axis = 1 if width >= height else 0
    # Parts may differ by a pixel, and must fit together: all have the cells of the largest.
    even = [max(1, round(max(encoding.cells[side] for encoding in encodings))) for side in (0, 1)]
    parts = [
        _on_grid(_part(features, axis, number, len(encodings)), encoding, settings, even)
        for number, encoding in enumerate(encodings)
    ]
    return torch.cat(parts, dim=1 + axis)


def _on_grid(features: Tensor, encoding: SamEncoding, settings: AggregateSettings, even: Sequence[int]) -> Tensor:
    """Average features over the cells of one image that SAM encoded: (C, *even) on cells that divide it evenly."""
    assert settings.cos_factor is not None
    grid, cells = (encoding.embedding.shape[1], encoding.embedding.shape[2]), encoding.cells
    positions = [
        centres(count, count * length / extent)
        for count, length, extent in zip(grid, features.shape[1:], cells, strict=True)
    ]
    values = bilinear(features, *positions)
    if settings.kind == "attention":
        assert encoding.attention is not None
        rows = attention_rows(encoding.attention, settings.cos_factor)
    else:
        own = encoding.embedding.flatten(1).T.to(features.device)
        rows = similarity_rows(own, own, settings.cos_factor, settings.temperature)
    found = _product(rows, values).unflatten(1, grid)
    # The last row or column of SAM's cells may lie partly outside the image.
    return bilinear(found, *(centres(count, extent) for count, extent in zip(even, cells, strict=True)))


def attention_rows(attention: LastAttention, cos_factor: float) -> Iterator[Tensor]:
    """Yield rows (r, N) of the correlation matrix of an attention; each row sums to 1.

    In each head, the weight of another cell counts where the cosine of both values is above min(cos_factor * mean,
    0.9); the mean over heads is normalised. (The mean of all cosines of a head is the squared length of its mean unit
    vector, and so never negative.)
    """
    unit = F.normalize(attention.values.float(), dim=-1)  # (heads, N, d)
    heads, count, _ = unit.shape
    threshold = (cos_factor * unit.mean(dim=1).square().sum(dim=-1)).clamp(max=_HIGHEST)[:, None, None]
    step = max(1, _CHUNK // (heads * count))
    for start in range(0, count, step):
        weights = attention.rows(start, min(start + step, count))
        weights.masked_fill_(unit[:, start : start + step] @ unit.mT <= threshold, 0)
        rows = weights.mean(dim=0)
        none = rows.sum(dim=1) == 0  # rounded to nothing for all that counts: the cell keeps itself
        rows.diagonal(start).masked_fill_(none, 1)
        yield rows / rows.sum(dim=1, keepdim=True)


def similarity_rows(queries: Tensor, keys: Tensor, cos_factor: float, temperature: float) -> Iterator[Tensor]:
    """Yield rows (r, M) of the correlation matrix of similarities; each row sums to 1.

    Weights are exp(cos / temperature) where the cosine is above min(cos_factor * mean, 0.9), and for the most similar
    cell.

    Args:
        queries: (N, G) vectors.
        keys: (M, G) vectors.
        cos_factor: see above.
        temperature: see above.
    """
    queries, keys = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
    threshold = (cos_factor * queries.mean(dim=0) @ keys.mean(dim=0)).clamp(max=_HIGHEST)
    step = max(1, _CHUNK // len(keys))
    for part in queries.split(step):
        cosines = part @ keys.T
        best = cosines.amax(dim=1, keepdim=True)
        left_out = (cosines <= threshold) & (cosines < best)
        yield (cosines / temperature).masked_fill_(left_out, -torch.inf).softmax(dim=1)


def _product(rows: Iterator[Tensor], values: Tensor) -> Tensor:
    """Multiply rows (r, M) of a matrix, one block after the other, by the values (C, h, w) of M cells: (C, N)."""
    flat = values.flatten(1).T
    return torch.cat([part @ flat for part in rows]).T


def _reduced(features: Tensor) -> Tensor:
    """Pool features (C, h, w) to at most `_KEYS` cells along a side."""
    height, width = features.shape[1:]
    return F.adaptive_avg_pool2d(features, (min(height, _KEYS), min(width, _KEYS)))


def _part(features: Tensor, axis: int, number: int, parts: int) -> Tensor:
    """Sample the cells (C, h, w) of one of several parts of equal length along an axis, bilinear."""
    if parts == 1:
        return features
    length = features.shape[1 + axis]
    count = max(1, round(length / parts))
    along = centres(count, length / parts) + number * length / parts
    whole = torch.arange(features.shape[2 - axis], dtype=torch.float64)
    return bilinear(features, *((along, whole) if axis == 0 else (whole, along)))
