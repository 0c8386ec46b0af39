"""AdamW without decay on vectors, and warm-up followed by a cosine to zero."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    """`conf/optim`: AdamW and its schedule; `warmup` is a share of all steps."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    warmup: float

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "OptimConfig":
        """From a configuration."""
        return cls(**{**values, "betas": tuple(values["betas"])})


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); biases, norms and the logit scale (at most 1-d) do not decay."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Fused: one pass over each parameter instead of a dozen.
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor on the learning rate at step `step` (from 0): linear up over `warmup` steps, cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * progress))
