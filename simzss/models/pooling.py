"""From token vectors to concept vectors: pure functions (SimZSS, section 3.3).

Concepts of a batch are ragged: M mentions, each with its image and its concept id, whose tokens are named by their
places in one long row of all tokens. Nothing is padded to a longest caption, and no shape depends on which concepts
occur.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_IMAGES = 1024
"""Images pooled at a time when there are more: their patches in float32 are gigabytes in a batch of 16,384."""


def token_sums(tokens: Tensor, token: Tensor, owner: Tensor, owners: int) -> Tensor:
    """Sum of the L2-normalised vectors of each owner's tokens: of a phrase, or of all phrases of a concept.

    Args:
        tokens: (T, D) token vectors.
        token: (S,) places in `tokens`.
        owner: (S,) whose token each of them is, 0 to owners - 1.
        owners: how many there are.

    Returns:
        (owners, D), not normalised; zero rows for those without a token.
    """
    unit = F.normalize(tokens[token], dim=-1)
    return unit.new_zeros(owners, tokens.shape[-1]).index_add(0, owner, unit)


def similarity_pool(
    queries: Tensor, patches: Tensor, rows: Tensor, slots: Tensor, width: int, temperature: float, images: int = _IMAGES
) -> Tensor:
    """Pool the patches that look like the query: softmax over patches of query . patch / temperature.

    Args:
        queries: (M, D) L2-normalised.
        patches: (I, N, D) L2-normalised, in any float type; computed with in that of the queries.
        rows: (M,) image of each query.
        slots: (M,) running number of each query among those of its image.
        width: slots of an image, more than the largest number in `slots`.
        temperature: of the softmax; 0.1 in the paper.
        images: at a time; of more, what the gradient needs is computed again on the way back.

    Returns:
        (M, D) L2-normalised pooled patches.
    """
    # One row of slots per image instead of one copy of the image's patches per query.
    table = queries.new_zeros(len(patches), max(width, 1), queries.shape[-1]).index_put((rows, slots), queries)
    if len(patches) <= images:
        pooled = _attend(table, patches, temperature)
    else:
        parts = zip(table.split(images), patches.split(images), strict=True)
        pooled = torch.cat([checkpoint(_attend, *part, temperature, use_reentrant=False) for part in parts])
    return F.normalize(pooled[rows, slots], dim=-1)


def _attend(queries: Tensor, patches: Tensor, temperature: float) -> Tensor:
    """(I, Q, D) queries over the (I, N, D) patches of their image -> (I, Q, D)."""
    patches = patches.to(queries.dtype)
    return torch.softmax(queries @ patches.transpose(1, 2) / temperature, dim=-1) @ patches
