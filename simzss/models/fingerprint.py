"""Short hashes of weights."""

import hashlib

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """Return a short hash of a model's weights and their names."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
