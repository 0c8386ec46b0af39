"""Which query is to explain which object: the cheapest assignment."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def match(costs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The assignment of least total cost for each image (the Hungarian problem; Carion et al. 2020, section 3.1).

    Args:
        costs: for each image (Q, M) of Q queries and M objects, on the CPU. A cost that is no number counts as
            1e6, so that it is chosen last.

    Returns:
        For each image min(Q, M) pairs as (queries, objects), int64, by query.
    """
    found = []
    for cost in costs:
        # SciPy refuses NaN; what is no number is caught later, in the loss.
        plain = np.nan_to_num(cost.float().numpy(), nan=1e6, posinf=1e6, neginf=-1e6)
        rows, columns = linear_sum_assignment(plain)
        found.append((torch.from_numpy(rows), torch.from_numpy(columns)))
    return found
