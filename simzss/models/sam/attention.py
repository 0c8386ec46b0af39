"""The last global attention of a SAM encoder, computed a few rows at a time."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LastAttention:
    """The last global attention of an encoder over the N = h * w cells that show the image.

    The (heads, N, N) matrix is never in memory as a whole.

    Attributes:
        grid: (h, w) cells.
        values: (heads, N, d) float32.
        queries: (heads, N, d), not scaled.
        keys: (heads, H * W, d) of the whole frame; the softmax includes the cells of padding.
        frame: (H, W) cells of the frame.
        down, across: (h, H, d) and (w, W, d) relative positions between a query's row or column and those of the keys;
            None for a model without.
    """

    grid: tuple[int, int]
    values: Tensor
    queries: Tensor = field(repr=False)
    keys: Tensor = field(repr=False)
    frame: tuple[int, int] = field(repr=False)
    down: Tensor | None = field(default=None, repr=False)
    across: Tensor | None = field(default=None, repr=False)

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return len(self.values)

    def rows(self, start: int, stop: int) -> Tensor:
        """Compute the rows `start` to `stop` of the attention: (heads, stop - start, N) float32.

        A row sums to less than 1 where its cell attends to padding too, which is left out.
        """
        query, key = self.queries[:, start:stop].float(), self.keys.float()
        logits = (query * query.shape[-1] ** -0.5) @ key.mT
        logits = logits.unflatten(-1, self.frame)
        if self.down is not None and self.across is not None:
            cell = torch.arange(start, start + query.shape[1], device=query.device)
            row, column = cell // self.grid[1], cell % self.grid[1]
            logits += torch.einsum("snd,nkd->snk", query, self.down[row].float())[..., :, None]
            logits += torch.einsum("snd,nkd->snk", query, self.across[column].float())[..., None, :]
        weights = logits.flatten(-2).softmax(-1).unflatten(-1, self.frame)
        return weights[..., : self.grid[0], : self.grid[1]].flatten(-2)
