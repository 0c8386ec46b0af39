"""Ragged batches for tests."""

from collections import Counter

import torch


def slots(rows):
    """Running number of each row among the equal ones before it."""
    seen = Counter()
    numbers = []
    for row in rows.tolist():
        numbers.append(seen[row])
        seen[row] += 1
    return torch.tensor(numbers, dtype=torch.long)
