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
        costs: for each image (Q, M) of Q queries and M objects. A cost that is no number counts as
            1e6, so that it is chosen last.

    Returns:
        For each image min(Q, M) pairs as (queries, objects), int64 on the costs' device, by query.
    """
    if not costs:
        return []
    found = []
    together = torch.cat([cost.float().flatten() for cost in costs]).cpu()  # a device is waited for once
    for cost, own in zip(costs, together.split([cost.numel() for cost in costs]), strict=True):
        # SciPy refuses NaN; what is no number is caught later, in the loss.
        plain = np.nan_to_num(own.view(cost.shape).numpy(), nan=1e6, posinf=1e6, neginf=-1e6)
        rows, columns = linear_sum_assignment(plain)
        found.append((torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)))
    return found
