"""Pool tokens to concept vectors, and patches by similarity to them (SimZSS, section 3.3).

The mentions of concepts in a batch are ragged: M mentions, each with an image, a concept id, and indices of its tokens
in one long row of all tokens. Nothing is padded to a longest caption, and no shape depends on which concepts occur.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_IMAGES = 1024
"""Images pooled at a time: in a batch of 16,384 their patches in float32 are gigabytes."""


def token_sums(tokens: Tensor, token: Tensor, owner: Tensor, owners: int) -> Tensor:
    """Sum the L2-normalised vectors of each owner's tokens: of a phrase, or of all phrases of a concept.

    Args:
        tokens: (T, D) token vectors.
        token: (S,) indices into `tokens`.
        owner: (S,) owner of each of these tokens, 0 to owners - 1.
        owners: number of owners.

    Returns:
        (owners, D), not normalised; zero rows for those without a token.
    """
    unit = F.normalize(tokens[token], dim=-1)
    return unit.new_zeros(owners, tokens.shape[-1]).index_add(0, owner, unit)


def similarity_pool(
    queries: Tensor,
    patches: Tensor,
    rows: Tensor,
    positions: Tensor,
    width: int,
    temperature: float,
    images: int = _IMAGES,
) -> Tensor:
    """Pool patches by their similarity to a query: softmax over patches of query . patch / temperature.

    Args:
        queries: (M, D) L2-normalised.
        patches: (I, N, D) L2-normalised, of any float type; converted to that of the queries.
        rows: (M,) image of each query.
        positions: (M,) index of each query among those of its image.
        width: queries of an image, more than the largest of `positions`.
        temperature: of the softmax; 0.1 in the paper.
        images: number at a time; above it activations are recomputed in the backward pass.

    Returns:
        (M, D) L2-normalised pooled patches.
    """
    # One row of positions per image instead of one copy of the image's patches per query.
    table = queries.new_zeros(len(patches), max(width, 1), queries.shape[-1]).index_put((rows, positions), queries)
    if len(patches) <= images:
        pooled = _attend(table, patches, temperature)
    else:
        parts = zip(table.split(images), patches.split(images), strict=True)
        pooled = torch.cat([checkpoint(_attend, *part, temperature, use_reentrant=False) for part in parts])
    return F.normalize(pooled[rows, positions], dim=-1)


def _attend(queries: Tensor, patches: Tensor, temperature: float) -> Tensor:
    """Attend from queries (I, Q, D) to the patches (I, N, D) of their image: (I, Q, D)."""
    patches = patches.to(queries.dtype)
    return torch.softmax(queries @ patches.transpose(1, 2) / temperature, dim=-1) @ patches
