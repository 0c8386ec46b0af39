"""Region vote: a promptable segmenter (SAM) divides the image into regions, and each takes one class of the coarse map.

The regions know no class: a grid of points prompts for them, as in the "everything" mode of Kirillov et al. 2023.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms

from simzss.data.settings import Background
from simzss.models.sam.sam import Prompts, Sam, SamEncoding
from simzss.segmentation.inference.encoder import ImageEncoding
from simzss.segmentation.refine.base import (
    CHUNK_BYTES,
    Counts,
    Refinement,
    Refiner,
    coarse_labels,
    coarse_scores,
    lost_classes,
)
from simzss.segmentation.settings import VoteSettings

_SIDE = 256  # the longer side at which regions are compared and kept: the decoders' own resolution
_OFFSET = 1.0  # logits by which the threshold is moved for the stability
_LARGE = 0.25  # share of the image above which a region does not answer for the points inside: it holds smaller ones
_CALL = 64  # points of one call of the decoder


@dataclass(frozen=True)
class VoteCounts(Counts):
    """Statistics of the regions.

    Attributes:
        points: that prompted the segmenter.
        answered: points of the grid that did not, as an earlier region holds them.
        regions: masks of the segmenter, several for each point.
        unsure: of these, those left out for their predicted IoU or stability.
        doubles: of these, those left out for a better one of the same box.
        kept: of these, those that voted.
        unseen: of these, those so small that the coarse map has no pixel in them.
        covered: pixels that a region labels.
        pixels: of the image.
        lost: (K,) int64 images in which the coarse map has the class, and the voted one does not.
    """

    points: int
    answered: int
    regions: int
    unsure: int
    doubles: int
    kept: int
    unseen: int
    covered: int
    pixels: int
    lost: Tensor

    def by_name(self, names: Sequence[str]) -> dict[str, Any]:
        """See `Counts`."""
        lost = {name: value for name, value in zip(names, self.lost.tolist(), strict=True) if value}
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"lost": lost}


class VoteRefiner(Refiner):
    """Region vote with SAM's regions."""

    needs_sam = True
    settings: VoteSettings

    def __init__(self, settings: VoteSettings, sam: Sam) -> None:
        self.settings = settings
        self.sam = sam

    def __call__(self, image: ImageEncoding, probabilities: Tensor, background: Background) -> Refinement:
        """Refine one image: see `Refiner`."""
        assert image.sam is not None
        return vote(self.sam, image.sam, probabilities, self.settings, image.prepared.size)


class VoteRefinement(Refinement):
    """Voted map of one image of H x W pixels.

    Args:
        probabilities: (K, h, w) of the coarse map.
        labels: (H, W) int64.
        owner: (H, W) int64 index of the region of each pixel; -1 outside all regions.
        votes: (R, K) of the regions.
        counts: statistics.
    """

    counts: VoteCounts

    def __init__(self, probabilities: Tensor, labels: Tensor, owner: Tensor, votes: Tensor, counts: VoteCounts) -> None:
        self.counts = counts
        self.labels = labels
        self._probabilities = probabilities
        self._owner = owner
        self._votes = votes

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Compute a region's votes, and the coarse probabilities elsewhere."""
        covered = self._owner >= 0
        scores = coarse_scores(self._probabilities, (covered.shape[0], covered.shape[1]))
        for plane, votes in zip(scores, self._votes.T, strict=True):
            plane[covered] = votes[self._owner[covered]]
        return scores


@torch.no_grad()
def vote(
    sam: Sam, encoding: SamEncoding, probabilities: Tensor, settings: VoteSettings, size: tuple[int, int]
) -> VoteRefinement:
    """Give each region of the image one class; where regions overlap the smallest counts.

    Args:
        sam: the segmenter.
        encoding: of the image.
        probabilities: (K, h, w) of the coarse map, on the segmenter's device; votes are counted at this resolution.
        settings: see `VoteSettings`.
        size: H and W of the result.

    Returns:
        The voted map; pixels outside all regions keep their coarse label.
    """
    found = _find(sam, encoding, settings, size, probabilities.device)
    keep = nms(found.boxes, found.iou, settings.max_overlap)
    order = found.area[keep].argsort(descending=True, stable=True)  # equal ones: the surer first
    logits = found.logits[keep[order]]
    votes = _count(logits, probabilities, settings.vote)
    seen = votes.amax(dim=1) > 0 if len(votes) else torch.zeros(0, dtype=torch.bool, device=votes.device)
    logits, votes = logits[seen], votes[seen]
    owner = torch.full(size, -1, dtype=torch.long, device=probabilities.device)
    for first, masks in _masks(logits, size):
        for number, mask in enumerate(masks, start=first):
            owner.masked_fill_(mask, number)
    coarse = coarse_labels(probabilities, size)
    labels = torch.where(owner >= 0, votes.argmax(dim=1)[owner.clamp(min=0)], coarse) if len(votes) else coarse
    counts = VoteCounts(
        points=found.points,
        answered=found.answered,
        regions=found.drawn,
        unsure=found.drawn - len(found.iou),
        doubles=len(found.iou) - len(keep),
        kept=len(votes),
        unseen=len(keep) - len(votes),
        covered=int((owner >= 0).sum()),
        pixels=size[0] * size[1],
        lost=lost_classes(coarse, labels, len(probabilities)),
    )
    return VoteRefinement(probabilities, labels, owner, votes, counts)


@dataclass(frozen=True)
class _Found:
    """Sure regions, doubles included.

    Attributes:
        logits: (R, h', w') float16.
        boxes: (R, 4) in pixels of these.
        iou: (R,) predicted.
        area: (R,) in pixels of these.
        points: number of points that prompted.
        answered: number of points that did not.
        drawn: number of masks, unsure ones included.
    """

    logits: Tensor
    boxes: Tensor
    iou: Tensor
    area: Tensor
    points: int
    answered: int
    drawn: int


def _find(
    sam: Sam, encoding: SamEncoding, settings: VoteSettings, size: tuple[int, int], device: torch.device
) -> _Found:
    """Prompt with the points of a coarse grid, then with those of the fine one that no earlier region holds."""
    scale = _SIDE / max(size)
    shape = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    taken = torch.zeros(shape, dtype=torch.bool, device=device)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    asked = answered = drawn = 0
    outer = torch.tensor([0, 0, 1, 1], device=device)  # from the last pixel to its outer edge
    for points in _rounds(settings.points, size):
        points = points.to(device)
        open_points = ~taken[(points[:, 1] * shape[0]).long(), (points[:, 0] * shape[1]).long()]
        points, answered = points[open_points], answered + int((~open_points).sum())
        asked += len(points)
        for chunk in points.split(_CALL) if len(points) else ():
            labels = torch.ones(len(chunk), 1, dtype=torch.long, device=device)
            masks = sam.decode(encoding, Prompts(chunk[:, None], labels, None, None), multimask=True)
            iou, logits = masks.iou.float().flatten(), masks.at(shape).flatten(0, 1)
            drawn += len(iou)
            inside, core, reach = (logits > level for level in (0, _OFFSET, -_OFFSET))
            stability = core.sum(dim=(1, 2)) / reach.sum(dim=(1, 2)).clamp(min=1)
            area = inside.sum(dim=(1, 2))
            sure = (iou >= settings.min_iou) & (stability >= settings.min_stability) & (area > 0)
            taken |= inside[sure & (area <= _LARGE * taken.numel())].any(dim=0)
            parts.append((logits[sure].half(), masks_to_boxes(inside[sure]) + outer, iou[sure], area[sure]))
    logits, boxes, iou, area = (torch.cat(part) for part in zip(*parts, strict=True))
    return _Found(logits, boxes, iou, area, asked, answered, drawn)


def _rounds(count: int, size: tuple[int, int]) -> list[Tensor]:
    """Relative points (n, 2) x, y of a grid with `count` cells along the longer side: those of every second row and
    column, then the others."""
    rows, columns = (max(1, round(count * side / max(size))) for side in size)
    y, x = (grid.flatten() for grid in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    points = torch.stack([(x + 0.5) / columns, (y + 0.5) / rows], dim=1)
    first = (y % 2 == rows // 2 % 2) & (x % 2 == columns // 2 % 2)  # the middle is among them
    return [points[first], points[~first]]


def _count(logits: Tensor, probabilities: Tensor, kind: str) -> Tensor:
    """(R, K) float32: mean probabilities in each region, or shares of the coarse labels; 0 where the coarse map has no
    pixel in a region."""
    count, height, width = probabilities.shape
    flat = probabilities.flatten(1).float()
    labels = flat.argmax(dim=0)
    votes = flat.new_zeros(len(logits), count)
    for first, masks in _masks(logits, (height, width)):
        for number, mask in enumerate(masks.flatten(1), start=first):
            if kind == "label":
                votes[number] = labels[mask].bincount(minlength=count)
            else:
                votes[number] = flat @ mask.float()
            votes[number] /= mask.sum().clamp(min=1)
    return votes


def _masks(logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """Yield (n, H, W) bool masks of regions at a size, a few at a time, with the index of the first."""
    first = 0
    for part in logits.split(max(1, CHUNK_BYTES // (4 * size[0] * size[1]))) if len(logits) else ():
        yield first, F.interpolate(part[None].float(), size, mode="bilinear")[0] > 0
        first += len(part)
