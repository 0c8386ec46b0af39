"""Region vote: a promptable segmenter (SAM) cuts the image into regions, and each takes one class of the coarse map.

The regions know no class: a grid of points asks for them, as in the "everything" mode of Kirillov et al. 2023.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from simzss.errors import InputError, nearest
from simzss.models.sam.sam import Prompts, Sam, SamEncoding
from simzss.segmentation.refine.sam import coarse_labels, coarse_scores

VOTES = ("probability", "label")

_SIDE = 256  # the longer side at which regions are compared and kept: what the decoders give
_OFFSET = 1.0  # logits by which the threshold is moved for the stability
_LARGE = 0.25  # share of the image above which a region does not answer for the points inside: it holds smaller ones
_CALL = 64  # points of one call of the decoder
_CHUNK_BYTES = 2**26  # masks at full size at a time, at least one


@dataclass(frozen=True)
class RegionVote:
    """How regions are found and how they vote.

    Args:
        points: of the grid along the longer side of the image.
        min_iou: regions of a lower predicted IoU are left out.
        min_stability: regions of a lower stability are left out: the pixels of logits above 1 over those above -1.
        max_overlap: of two regions whose boxes have a higher IoU the one of lower predicted IoU is left out.
        vote: a region takes the class of the highest mean `probability` in it, or the most frequent coarse `label`.
    """

    points: int = 16
    min_iou: float = 0.88
    min_stability: float = 0.9
    max_overlap: float = 0.7
    vote: str = "probability"

    def __post_init__(self) -> None:
        if self.points < 1:
            raise InputError(f"refine.points={self.points} must be at least 1")
        for name in ("min_iou", "min_stability", "max_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"refine.{name}={getattr(self, name)} must be between 0 and 1")
        if self.vote not in VOTES:
            raise InputError(f"refine.vote={self.vote} is unknown; {nearest(self.vote, VOTES)}")


@dataclass(frozen=True)
class VoteCounts:
    """What became of the regions; sums over images by `+`.

    Args:
        points: that the segmenter was asked about.
        answered: points of the grid that were not asked about, as a region found before holds them.
        regions: that it drew, several for each point.
        unsure: of these, those left out for their predicted IoU or stability.
        doubles: of these, those left out for a better one in their place.
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

    def __add__(self, other: "VoteCounts") -> "VoteCounts":
        return VoteCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def by_name(self, names: Sequence[str]) -> dict[str, Any]:
        """The counts, and the classes that were lost by name."""
        lost = {name: value for name, value in zip(names, self.lost.tolist(), strict=True) if value}
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"lost": lost}


class Voted:
    """The result for one image of H x W pixels.

    `labels` (H, W) int64; `counts`; `scores()` makes (K, H, W).
    """

    def __init__(self, probabilities: Tensor, labels: Tensor, owner: Tensor, votes: Tensor, counts: VoteCounts) -> None:
        self.labels = labels
        self.counts = counts
        self._probabilities = probabilities
        self._owner = owner
        self._votes = votes

    @torch.no_grad()
    def scores(self) -> Tensor:
        """(K, H, W) float32 whose arg-max is the label: a region's votes, and the coarse probabilities elsewhere."""
        size, covered = (self.labels.shape[0], self.labels.shape[1]), self._owner >= 0
        scores = coarse_scores(self._probabilities, size)
        for plane, votes in zip(scores, self._votes.T, strict=True):
            plane[covered] = votes[self._owner[covered]]
        return scores


@torch.no_grad()
def vote(sam: Sam, encoding: SamEncoding, probabilities: Tensor, settings: RegionVote, size: tuple[int, int]) -> Voted:
    """Give each region of the image one class; where regions overlap the smallest counts.

    Args:
        sam: the segmenter.
        encoding: what it made of the image.
        probabilities: (K, h, w) of the coarse map, on the segmenter's device; votes are counted at this resolution.
        settings: see `RegionVote`.
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
    count = len(probabilities)
    had, has = (plane.flatten().bincount(minlength=count) > 0 for plane in (coarse, labels))
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
        lost=(had & ~has).long().cpu(),
    )
    return Voted(probabilities, labels, owner, votes, counts)


@dataclass(frozen=True)
class _Found:
    """Sure regions before doubles are left out: logits (R, h', w') float16, boxes (R, 4) in pixels of these, iou (R,),
    area (R,); how many points were asked about and not, and how many regions were drawn."""  # fmt: skip

    logits: Tensor
    boxes: Tensor
    iou: Tensor
    area: Tensor
    points: int
    answered: int
    drawn: int


def _find(sam: Sam, encoding: SamEncoding, settings: RegionVote, size: tuple[int, int], device: torch.device) -> _Found:
    """Ask about the points of a coarse grid, then about those of the fine one that no region found before holds."""
    scale = _SIDE / max(size)
    shape = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    taken = torch.zeros(shape, dtype=torch.bool, device=device)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    asked = answered = drawn = 0
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
            parts.append((logits[sure].half(), _boxes(inside[sure]), iou[sure], area[sure]))
    logits, boxes, iou, area = (torch.cat(part) for part in zip(*parts, strict=True))
    return _Found(logits, boxes, iou, area, asked, answered, drawn)


def _rounds(count: int, size: tuple[int, int]) -> list[Tensor]:
    """Relative points (n, 2) x, y of a grid with `count` cells along the longer side: those of every second row and
    column, then the others."""  # fmt: skip
    rows, columns = (max(1, round(count * side / max(size))) for side in size)
    y, x = (grid.flatten() for grid in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    points = torch.stack([(x + 0.5) / columns, (y + 0.5) / rows], dim=1)
    first = (y % 2 == rows // 2 % 2) & (x % 2 == columns // 2 % 2)  # the middle is among them
    return [points[first], points[~first]]


def _boxes(masks: Tensor) -> Tensor:
    """(R, 4) float32 x0, y0, x1, y1, outer edges in pixels, of masks (R, h, w) that are not empty."""
    edges = []
    for axis in (1, 2):  # over rows: columns that are hit, then the other way round
        hit = masks.any(dim=axis).byte()
        edges.append((hit.argmax(dim=1), hit.shape[1] - hit.flip(1).argmax(dim=1)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1).float()


def _count(logits: Tensor, probabilities: Tensor, kind: str) -> Tensor:
    """(R, K) float32: mean probabilities in each region, or shares of the coarse labels; 0 where the coarse map has no
    pixel in a region."""  # fmt: skip
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
    """(n, H, W) bool masks of regions at a size, a few at a time, with the index of the first."""
    first = 0
    for part in logits.split(max(1, _CHUNK_BYTES // (4 * size[0] * size[1]))) if len(logits) else ():
        yield first, F.interpolate(part[None].float(), size, mode="bilinear")[0] > 0
        first += len(part)
