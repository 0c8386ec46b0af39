"""From token vectors to concept vectors: pure functions (SimZSS, section 3.3).

Concepts of a batch are ragged: M mentions, each with the row of its caption, its half-open token range and its
concept id. Nothing is padded, and no shape depends on which concepts occur.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def span_sum(tokens: Tensor, rows: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Sum of the L2-normalised token vectors of each span.

    Args:
        tokens: (B, L, D) token vectors.
        rows: (M,) caption of each span.
        start: (M,) first token.
        end: (M,) one past the last token.

    Returns:
        (M, D) phrase vectors, not normalised.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    inside = (positions >= start[:, None]) & (positions < end[:, None])  # (M, L)
    normalised = F.normalize(tokens, dim=-1)
    return torch.einsum("ml,mld->md", inside.to(normalised.dtype), normalised[rows])


def prototype_sums(phrases: Tensor, concept_id: Tensor, num_concepts: int) -> Tensor:
    """Sum of the phrase vectors of each concept; (M, D), (M,) -> (K, D), zero rows for absent concepts."""
    sums = phrases.new_zeros(num_concepts, phrases.shape[-1])
    return sums.index_add(0, concept_id, phrases)


def similarity_pool(queries: Tensor, patches: Tensor, rows: Tensor, slots: Tensor, temperature: float) -> Tensor:
    """Pool the patches that look like the query: softmax over patches of query . patch / temperature.

    Args:
        queries: (M, D) L2-normalised.
        patches: (B, N, D) L2-normalised.
        rows: (M,) image of each query.
        slots: (M,) running number of each query among those of its image.
        temperature: of the softmax; 0.1 in the paper.

    Returns:
        (M, D) L2-normalised pooled patches.
    """
    # One row of slots per image instead of one copy of the image's patches per query.
    width = int(slots.max()) + 1 if len(slots) else 1
    table = queries.new_zeros(len(patches), width, queries.shape[-1]).index_put((rows, slots), queries)
    attention = torch.softmax(table @ patches.transpose(1, 2) / temperature, dim=-1)
    return F.normalize((attention @ patches)[rows, slots], dim=-1)
