"""Which classes a model takes for which others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a page without confusions needs no deep-learning framework
    from torch import Tensor

__all__ = ["Confusion", "confusion_pairs"]


@dataclass(frozen=True, eq=False)
class Confusion:
    """A confusion matrix with its names.

    Attributes:
        matrix: (K, K) int64, pixels of the row's class that were labelled as the column's.
        class_names: K names.
    """

    matrix: Tensor
    class_names: tuple[str, ...]


def confusion_pairs(confusion: Confusion, count: int) -> list[str]:
    """The largest off-diagonal cells as sentences, such as "sofa taken for chair: 12.3 % of sofa's pixels".

    Ranked by pixels, not by share: a class of a few pixels that is always missed costs less than it looks. Equal cells
    come in the order of the matrix; empty ones are left out.

    Args:
        confusion: matrix and names.
        count: how many at most.

    Raises:
        ValueError: matrix and names do not fit.
    """
    matrix, names = confusion.matrix, confusion.class_names
    if tuple(matrix.shape) != (len(names), len(names)):
        raise ValueError(f"confusion matrix of shape {tuple(matrix.shape)} for {len(names)} class names")
    wrong = matrix.clone().fill_diagonal_(0).flatten()
    pixels, cells = wrong.sort(descending=True, stable=True)
    truth = matrix.sum(dim=1).tolist()
    sentences = []
    for amount, cell in zip(pixels[:count].tolist(), cells[:count].tolist(), strict=True):
        if amount <= 0:
            break
        actual, taken = divmod(cell, len(names))
        share = 100 * amount / truth[actual]
        shown = f"{share:.1f} %" if share >= 0.05 else "< 0.1 %"
        sentences.append(f"{names[actual]} taken for {names[taken]}: {shown} of {names[actual]}'s pixels")
    return sentences
