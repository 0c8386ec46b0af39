"""Concept loss of SimZSS (equation 6): pooled patches are classified among the concepts of the global batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.distributed import sum_over_ranks, total, world_size


def global_prototypes(sums: Tensor, concept_id: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the concept prototypes of the global batch.

    Args:
        sums: (K, D) sum of this rank's phrase vectors per concept.
        concept_id: (M,) concepts of this rank's phrases.

    Returns:
        prototypes (K, D), L2-normalised, zero rows for absent concepts; present (K,) bool.
    """
    counts = torch.zeros(len(sums), device=sums.device).index_add(
        0, concept_id, torch.ones_like(concept_id, dtype=torch.float32)
    )
    return F.normalize(sum_over_ranks(sums), dim=-1), total(counts) > 0


def concept_loss(
    pooled_patches: Tensor, prototypes: Tensor, present: Tensor, concept_id: Tensor, temperature: float, target: str
) -> Tensor:
    """Compute the cross-entropy of pooled patches over the prototypes of the concepts in the global batch.

    Args:
        pooled_patches: (M, D) L2-normalised, one per concept mention of this rank; M may be 0.
        prototypes: (K, D) L2-normalised.
        present: (K,) bool, the concepts that compete.
        concept_id: (M,) the concept that each was pooled for.
        temperature: of the softmax over concepts; 0.07 in the paper.
        target: `concept` (its own id, the paper's text) or `argmax` (the likeliest one, as the original release
            computes it: self-training).

    Returns:
        This rank's share, scaled so that the mean over ranks is the mean over all M of the joint batch; 0 with a
        gradient path when no rank has a concept.
    """
    logits = (pooled_patches @ prototypes.T) / temperature
    logits = logits.masked_fill(~present, torch.finfo(logits.dtype).min)
    label = concept_id if target == "concept" else logits.argmax(dim=-1)
    mentions = total(logits.new_tensor(float(len(concept_id)))).clamp(min=1)
    loss = F.cross_entropy(logits, label, reduction="sum") * (world_size() / mentions)
    # A rank without concepts must still take part in the backward pass of the collectives.
    return loss + 0.0 * prototypes.sum()
