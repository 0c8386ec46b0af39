"""Features averaged over the places that belong together, as a correlation matrix says (Trident, Shi et al. 2024, 3.3).

The matrix comes from the last global attention of a SAM encoder, from the similarities of a SAM's image embedding (for
those whose attention never spans the image, such as MobileSAM and SAM 2), or from those of the features themselves. It
is made some rows at a time: as a whole, and for each head, it would take gigabytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.errors import InputError, nearest
from simzss.models.sam.sam import LastAttention, Sam, SamEncoding
from simzss.models.sam.sampling import bilinear, centres

KINDS = ("none", "sam", "attention", "embedding", "patches")

COS_FACTOR = 1.2
"""What `cos_factor` is where neither the settings nor a benchmark say."""

_HIGHEST = 0.9  # threshold: above it hardly a cell would keep another one
_CHUNK = 2**22  # elements of a matrix, over all heads, at a time
_KEYS = 64  # cells along a side that the features' own similarity looks at: those of SAM


@dataclass(frozen=True)
class Correlation:
    """How features are averaged, `conf/correlate`.

    Args:
        kind: `none`; `attention` or `embedding` of SAM; `sam`: its attention, or its embedding where it has none;
            `patches`: the features' own similarity.
        cos_factor: a cell looks at those whose similarity is above so many times the mean one; None: as the benchmark
            says.
        temperature: of the weights exp(similarity / temperature) of `embedding` and `patches`.
        parts: SAM sees the image in so many parts along its longer side, each in full resolution; None: as the
            benchmark says.
    """

    kind: str = "none"
    cos_factor: float | None = None
    temperature: float = 0.05
    parts: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"correlate.kind={self.kind} is unknown; {nearest(self.kind, KINDS)}")
        if self.cos_factor is not None and not self.cos_factor >= 0:  # so that NaN is refused too
            raise InputError(f"correlate.cos_factor={self.cos_factor} must be at least 0")
        if not self.temperature > 0:
            raise InputError(f"correlate.temperature={self.temperature} must be above 0")
        if self.parts is not None and self.parts < 1:
            raise InputError(f"correlate.parts={self.parts} must be at least 1")

    @property
    def needs_sam(self) -> bool:
        """Whether a SAM sees the image."""
        return self.kind in ("sam", "attention", "embedding")

    def resolved(self, sam: Sam | None, cos_factor: float | None = None, parts: int | None = None) -> "Correlation":
        """These settings without open ones: their own values, else those given of a benchmark, else the defaults.

        Raises:
            InputError: an attention is asked of a SAM that has none.
        """
        kind = self.kind
        if kind == "sam":
            assert sam is not None
            kind = "attention" if sam.has_attention else "embedding"
        elif kind == "attention" and sam is not None and not sam.has_attention:
            raise InputError(f"correlate.kind=attention: SAM {sam.name} has no global attention over the image's "
                             "cells; use embedding")  # fmt: skip
        own = self.cos_factor if self.cos_factor is not None else cos_factor
        pieces = (self.parts if self.parts is not None else parts) if self.needs_sam else 1
        return replace(self, kind=kind, cos_factor=COS_FACTOR if own is None else own, parts=pieces or 1)


def correlate(
    features: Tensor, encodings: list[SamEncoding], settings: Correlation, photo: tuple[int, int] | None = None
) -> Tensor:
    """Average features over the cells that belong together.

    Args:
        features: (C, h, w) of the whole image.
        encodings: what SAM made of the image, or of its parts from left to right or from top to bottom; empty for
            `patches`.
        settings: resolved.
        photo: its height and width, of which the longer one was cut; None: as of the features, which may have been
            rounded to a square.

    Returns:
        (C, h', w') float32: on SAM's grid, or on that of the features for `patches`.
    """
    assert settings.cos_factor is not None
    features = features.float()
    if settings.kind == "patches":
        keys = _shrunk(features)
        rows = similarity_rows(features.flatten(1).T, keys.flatten(1).T, settings.cos_factor, settings.temperature)
        return _averaged(rows, keys).unflatten(1, features.shape[1:])
    height, width = photo or features.shape[1:]
    axis = 1 if width >= height else 0
    # Parts may differ by a pixel, and must fit together: all have the cells of the largest.
    even = [max(1, round(max(encoding.cells[side] for encoding in encodings))) for side in (0, 1)]
    pieces = [
        _on_grid(_part(features, axis, number, len(encodings)), encoding, settings, even)
        for number, encoding in enumerate(encodings)
    ]
    return torch.cat(pieces, dim=1 + axis)


def _on_grid(features: Tensor, encoding: SamEncoding, settings: Correlation, even: Sequence[int]) -> Tensor:
    """The same for one picture that SAM saw: (C, *even) on cells that divide it evenly."""
    assert settings.cos_factor is not None
    grid, cells = (encoding.embedding.shape[1], encoding.embedding.shape[2]), encoding.cells
    places = [
        centres(count, count * length / extent)
        for count, length, extent in zip(grid, features.shape[1:], cells, strict=True)
    ]
    values = bilinear(features, *places)
    if settings.kind == "attention":
        assert encoding.attention is not None
        rows = attention_rows(encoding.attention, settings.cos_factor)
    else:
        own = encoding.embedding.flatten(1).T.to(features.device)
        rows = similarity_rows(own, own, settings.cos_factor, settings.temperature)
    found = _averaged(rows, values).unflatten(1, grid)
    # The last row or column of SAM's cells may lie partly outside the image.
    return bilinear(found, *(centres(count, extent) for count, extent in zip(even, cells, strict=True)))


def attention_rows(attention: LastAttention, cos_factor: float) -> Iterator[Tensor]:
    """Rows (r, N) of the correlation matrix that an attention makes; each row sums to 1.

    In each head, what a cell looks at counts where the cosine of the two values is above min(cos_factor * mean, 0.9);
    the mean over heads is normalised. (The mean of all cosines of a head is the squared length of its mean unit vector,
    and so never negative.)
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
    """Rows (r, M) of the correlation matrix that similarities make; each row sums to 1.

    Weights are exp(cos / temperature) where the cosine is above min(cos_factor * mean, 0.9); a cell always looks at
    the one most like it.

    Args:
        queries: (N, G) vectors of the cells that look.
        keys: (M, G) of those looked at.
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


def _averaged(rows: Iterator[Tensor], values: Tensor) -> Tensor:
    """(C, N): rows (r, M) of a matrix, one after the other, times the values (C, h, w) of M cells."""
    flat = values.flatten(1).T
    return torch.cat([part @ flat for part in rows]).T


def _shrunk(features: Tensor) -> Tensor:
    """(C, h, w) with at most `_KEYS` cells along a side: means of cells."""
    height, width = features.shape[1:]
    return F.adaptive_avg_pool2d(features, (min(height, _KEYS), min(width, _KEYS)))


def _part(features: Tensor, axis: int, number: int, parts: int) -> Tensor:
    """(C, h, w) -> the cells of one of several parts of equal length along an axis, bilinear."""
    if parts == 1:
        return features
    length = features.shape[1 + axis]
    count = max(1, round(length / parts))
    along = centres(count, length / parts) + number * length / parts
    whole = torch.arange(features.shape[2 - axis], dtype=torch.float64)
    return bilinear(features, *((along, whole) if axis == 0 else (whole, along)))
