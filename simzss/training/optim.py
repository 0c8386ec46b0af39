"""AdamW without decay on vectors, and a linear warm-up followed by a cosine to zero."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from simzss.training.settings import OptimSettings


def build_optimizer(parameters: Iterable[nn.Parameter], settings: OptimSettings) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov & Hutter 2019); biases, norms and the logit scale (at most 1-d) do not decay."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Fused: one pass over each parameter instead of a dozen.
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Return the factor on the learning rate at step `step` (from 0): linear over `warmup` steps, 0 at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * progress))
