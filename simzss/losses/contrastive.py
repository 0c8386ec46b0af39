"""Image-caption contrastive loss (CLIP's InfoNCE, Radford et al. 2021) over the global batch."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from simzss.distributed import gather_rows, rank

_ROWS = 4096
"""Rows of the logits at a time: a batch of 16,384 has a gigabyte of logits, several times over."""


def contrastive_loss(
    cls: Tensor, pooled: Tensor, logit_scale: Tensor, image_row: Tensor | None = None, rows: int = _ROWS
) -> Tensor:
    """Compute the symmetric cross-entropy of matching images with captions.

    Args:
        cls: (B, D) L2-normalised image vectors of this rank.
        pooled: (B, D) L2-normalised sentence vectors, row i belongs to image i.
        logit_scale: log of the factor on cosines, clamped to a factor of 100.
        image_row: (B,) number of the image of each row; None: all differ. Other captions of the same image are no
            negatives; they are left out. No image is on two ranks.
        rows: rows of the logits at a time; chunks are recomputed in the backward pass (GradCache, Gao et al. 2021).

    Returns:
        This rank's mean over its 2B rows; its mean over ranks is the loss of the joint batch.
    """
    scale = logit_scale.exp().clamp(max=100.0)
    image_to_text = _matching(scale * cls, gather_rows(pooled), image_row, rows)
    text_to_image = _matching(scale * pooled, gather_rows(cls), image_row, rows)
    return (image_to_text + text_to_image) / 2


def _matching(queries: Tensor, keys: Tensor, image_row: Tensor | None, rows: int) -> Tensor:
    """Average the cross-entropy of this rank's (B, D) queries over all (world * B, D) keys."""
    count = len(queries)
    first = rank() * count
    target = torch.arange(first, first + count, device=queries.device)
    if count <= rows:
        return _cross_entropy(queries, keys, target, image_row, image_row, first) / count
    of_rows = [None] * -(-count // rows) if image_row is None else image_row.split(rows)
    parts = zip(queries.split(rows), target.split(rows), of_rows, strict=True)
    sums = [
        checkpoint(_cross_entropy, part, keys, own, of_part, image_row, first, use_reentrant=False)
        for part, own, of_part in parts
    ]
    return torch.stack(sums).sum() / count


def _cross_entropy(
    queries: Tensor, keys: Tensor, target: Tensor, of_query: Tensor | None, of_key: Tensor | None, first: int
) -> Tensor:
    """Sum the cross-entropies of (b, D) queries; `of_key` (B,) numbers the images of this rank's keys."""
    logits = queries @ keys.T
    if of_query is not None and of_key is not None:
        other = of_query[:, None] == of_key
        other &= target[:, None] != torch.arange(first, first + len(of_key), device=target.device)
        other = F.pad(other, (first, len(keys) - first - len(of_key)))
        logits = logits.masked_fill(other, torch.finfo(logits.dtype).min)
    return F.cross_entropy(logits, target, reduction="sum")
