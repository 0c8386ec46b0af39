"""Ragged batches for tests."""

from collections import Counter

import torch

from simzss.models.pooling import token_sums


def slots(rows):
    """Return the running number of each row among its equals, and how many the most frequent one has."""
    seen = Counter()
    numbers = []
    for row in rows.tolist():
        numbers.append(seen[row])
        seen[row] += 1
    return torch.tensor(numbers, dtype=torch.long), max(seen.values(), default=0)


def tokens_of(rows, start, end, length):
    """Return the index of every token of half-open spans among all tokens of captions of `length`, and its owner."""
    indices = [
        (int(row) * length + token, owner)
        for owner, (row, first, stop) in enumerate(zip(rows, start, end, strict=True))
        for token in range(int(first), int(stop))
    ]
    return torch.tensor(indices, dtype=torch.long).reshape(-1, 2).unbind(1)


def concept_sums(tokens, rows, start, end, ids, concepts):
    """Sum (B, L, D) token vectors as a step does: (concepts, D)."""
    token, owner = tokens_of(rows, start, end, tokens.shape[1])
    return token_sums(tokens.flatten(0, 1), token, ids[owner], concepts)
