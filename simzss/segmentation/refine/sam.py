"""Class regions redrawn by a promptable segmenter (SAM).

Step 5 of Trident (Shi et al. 2024): each region of the coarse map gives the segmenter a box, a point and a faint mask;
what it draws counts where it trusts itself, and elsewhere the coarse map stays.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.errors import InputError, nearest
from simzss.models.sam.sam import Prompts, Sam, SamEncoding, SamMasks
from simzss.segmentation.classifier import ClassProbabilities
from simzss.segmentation.inference.scores import ScoreMap
from simzss.segmentation.refine.geometry import Regions, regions

SHORT_SIDE = 448
"""`min_area` is meant for a map whose short side has so many pixels."""

THRESHOLD = 0.5
"""What `threshold` is where neither the settings, nor a background, nor a benchmark say: the class has the majority."""

BACKGROUNDS = ("compete", "yield", "rest")

_CALL = 256  # prompts of one call of the decoder: their mask prompts and masks take 64 MB each
_MASK_SIDE = 256  # the longer side of mask prompts: no decoder has a finer frame
_CHUNK_BYTES = 2**26  # masks at full size at a time, at least one


@dataclass(frozen=True)
class SamRefinement:
    """How class regions are redrawn.

    Args:
        threshold: a region of a class is where its probability is above; None: the threshold of the background, where
            there is one, else as the benchmark says.
        min_area: pixels that a region has at least, on a map whose short side has `SHORT_SIDE` pixels.
        min_iou: masks of a higher predicted IoU are accepted; a region whose mask is not keeps its coarse scores.
        mask_scale: class probabilities times this are the logits of the mask prompt; None: no mask prompt.
        background: what becomes of a background class, which has no regions of its own. `compete`: its score is its
            coarse probability times one minus the strongest mask, and pixels that a class has in the coarse map, but
            no mask covers, are fought for by the same scores, if a mask of that class was accepted. `yield`: masks win
            over it, and what they leave keeps its coarse label. `rest`: masks win over it, and what neither they nor
            failed regions cover is background.
    """

    threshold: float | None = None
    min_area: float = 225
    min_iou: float = 0.8
    mask_scale: float | None = 0.005
    background: str = "compete"

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise InputError(f"refine.threshold={self.threshold} must be at least 0 and below 1")
        if not self.min_area >= 0:  # so that NaN is refused too
            raise InputError(f"refine.min_area={self.min_area} must be at least 0")
        if not 0 <= self.min_iou < 1:
            raise InputError(f"refine.min_iou={self.min_iou} must be at least 0 and below 1")
        if self.mask_scale is not None and not self.mask_scale > 0:
            raise InputError(f"refine.mask_scale={self.mask_scale} must be above 0")
        if self.background not in BACKGROUNDS:
            raise InputError(f"refine.background={self.background} is unknown; {nearest(self.background, BACKGROUNDS)}")

    def resolved(self, threshold: float | None = None) -> "SamRefinement":
        """These settings with a threshold: their own, else the given one of a benchmark, else `THRESHOLD`."""
        if self.threshold is not None:
            return self
        return replace(self, threshold=THRESHOLD if threshold is None else threshold)


@dataclass(frozen=True)
class RegionCounts:
    """What became of the regions of K classes; sums over images by `+`.

    Args:
        prompts: (K,) int64 regions that the segmenter was asked about.
        accepted: (K,) int64 of these, those whose mask was accepted.
        failed: (K,) int64 of these, those that keep their coarse scores.
        small: (K,) int64 regions that were too small to ask about.
        lost: (K,) int64 images in which the coarse map has the class, and the refined one does not.
    """

    prompts: Tensor
    accepted: Tensor
    failed: Tensor
    small: Tensor
    lost: Tensor

    def __add__(self, other: "RegionCounts") -> "RegionCounts":
        return RegionCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def by_name(self, names: Sequence[str]) -> dict[str, dict[str, int]]:
        """For each count the classes that have any, by name."""
        table = {f.name: getattr(self, f.name).tolist() for f in fields(self)}
        return {
            count: {name: value for name, value in zip(names, values, strict=True) if value}
            for count, values in table.items()
        }


class Refined:
    """The result for one image of H x W pixels, kept as small as the decoder made it: 256 kB a region.

    `labels` (H, W) int64; `counts`; `scores()` makes (K, H, W).
    """

    def __init__(self, probabilities: Tensor, drawn: "_Drawn", background: str | None, size: tuple[int, int]) -> None:
        self._probabilities = probabilities
        self._drawn = drawn
        self._background = background
        self._size = size
        coarse = coarse_labels(probabilities, size)
        self.labels, self._decided = self._merge(coarse)
        count = len(probabilities)
        had, has = (labels.flatten().bincount(minlength=count) > 0 for labels in (coarse, self.labels))
        self.counts = drawn.counts((had & ~has).long().cpu())

    @torch.no_grad()
    def scores(self) -> Tensor:
        """(K, H, W) float32 whose arg-max is the label: the merged scores where the regions decide, and the coarse
        probabilities elsewhere."""  # fmt: skip
        scores = coarse_scores(self._probabilities, self._size)
        scores.masked_fill_(self._decided, 0)
        strongest = scores.new_zeros(self._size)
        for row, score, mask, _ in self._drawn.planes(self._probabilities, self._size):
            scores[row] = torch.where(self._decided, score, scores[row])
            strongest = torch.maximum(strongest, mask)
        if self._background is not None:
            scores[0] = torch.where(self._decided, self._rest(strongest), scores[0])
        if self._background == "rest":
            left = ~self._decided
            scores[1:].masked_fill_(left, 0)
            scores[0].masked_fill_(left, 1)
        return scores

    @torch.no_grad()
    def _merge(self, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (H, W), and (H, W) bool: where the merged scores decide rather than the coarse map or, with `rest`,
        the background."""  # fmt: skip
        best = self._probabilities.new_zeros(self._size, dtype=torch.float32)
        strongest, label, covered = torch.zeros_like(best), torch.zeros_like(coarse), torch.zeros_like(best).bool()
        for row, score, mask, fallback in self._drawn.planes(self._probabilities, self._size):
            label.masked_fill_(score > best, row)
            best = torch.maximum(best, score)
            strongest = torch.maximum(strongest, mask)
            covered |= fallback
        covered |= strongest >= 0.5
        covered &= best > 0  # a mask over probabilities that rounded to nothing says nothing
        if self._background is not None:
            label.masked_fill_(self._rest(strongest) >= best, 0)
        if self._background == "compete":
            trimmed = torch.zeros(len(self._probabilities), dtype=torch.bool, device=coarse.device)
            trimmed[self._drawn.accepted_classes] = True
            covered |= trimmed[coarse]
        elif self._background == "rest":
            coarse = torch.zeros_like(coarse)
        return torch.where(covered, label, coarse), covered

    def _rest(self, strongest: Tensor) -> Tensor:
        """(H, W) score of the background, which failed regions always have to reckon with."""
        open_to_it = 1 - strongest if self._background == "compete" else (strongest < 0.5).float()
        return resized(self._probabilities[0], self._size) * open_to_it


@torch.no_grad()
def refine(
    sam: Sam,
    encoding: SamEncoding,
    probabilities: Tensor,
    settings: SamRefinement,
    size: tuple[int, int],
    *,
    background: bool,
) -> Refined:
    """Redraw the regions of the classes.

    Args:
        sam: the segmenter.
        encoding: what it made of the image.
        probabilities: (K, h, w) of the coarse map, on the segmenter's device; regions are found at this resolution.
        settings: see `SamRefinement`; a threshold that is None is `THRESHOLD`.
        size: H and W of the result.
        background: whether row 0 is the background.

    Returns:
        The refined map. Where no region is above the threshold it is the coarse one (with `rest`: background).
    """
    settings = settings.resolved()
    assert settings.threshold is not None
    min_area = settings.min_area * (min(probabilities.shape[1:]) / SHORT_SIDE) ** 2
    classes = range(int(background), len(probabilities))
    found = regions(probabilities, settings.threshold, min_area, classes)
    drawn = _Drawn(found, len(probabilities), *_ask(sam, encoding, probabilities, found, settings))
    return Refined(probabilities, drawn, settings.background if background else None, size)


@dataclass(frozen=True)
class _Drawn:
    """What the segmenter drew of the P regions: the decoder's `calls` in their order, and which it
    drew surely enough, `accepted` (P,) bool on the CPU."""

    found: Regions
    count: int
    calls: list[SamMasks]
    accepted: Tensor

    @property
    def accepted_classes(self) -> list[int]:
        """Classes that have an accepted mask."""
        return sorted(set(self.found.class_index[self.accepted].tolist()))

    def counts(self, lost: Tensor) -> RegionCounts:
        """The counts, `lost` being made by others."""
        prompts, accepted = (
            self.found.class_index[chosen].bincount(minlength=self.count)
            for chosen in (torch.ones_like(self.accepted), self.accepted)
        )
        small = torch.zeros_like(prompts)
        for row, number in self.found.small.items():
            small[row] = number
        return RegionCounts(prompts, accepted, prompts - accepted, small, lost)

    def planes(self, probabilities: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """For each class that has regions: its row, its score (H, W), the strongest of its accepted masks (H, W) in
        0..1, and the pixels of its failed regions (H, W) bool."""  # fmt: skip
        for row in sorted(set(self.found.class_index.tolist())):
            members = (self.found.class_index == row).nonzero()[:, 0]
            accepted = self.accepted[members]
            mask = probabilities.new_zeros(size, dtype=torch.float32)
            for logits in self._logits(members[accepted], size):
                mask = torch.maximum(mask, logits.amax(dim=0).sigmoid())
            union = self.found.union(members[~accepted].tolist()).to(mask.device)
            fallback = union[_cells(size[0], union.shape[0])][:, _cells(size[1], union.shape[1])]
            # within a class the probability is a factor of every score: the largest mask makes the largest score
            score = resized(probabilities[row], size) * mask.masked_fill(fallback, 1)
            yield row, score, mask, fallback

    def _logits(self, members: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        """(n, H, W) logits of some masks, a few at a time."""
        at_once = max(1, _CHUNK_BYTES // (4 * size[0] * size[1]))
        first = 0
        for masks in self.calls:
            last = first + len(masks.iou)
            own = members[(members >= first) & (members < last)] - first
            for part in own.split(at_once) if len(own) else ():
                yield masks.at(size, part.to(masks.iou.device))[:, 0]
            first = last


def _ask(
    sam: Sam, encoding: SamEncoding, probabilities: Tensor, found: Regions, settings: SamRefinement
) -> tuple[list[SamMasks], Tensor]:
    """Masks of all regions, and which are accepted (P,) bool on the CPU."""
    device = probabilities.device
    classes = sorted(set(found.class_index.tolist()))
    place = torch.zeros(len(probabilities), dtype=torch.long)
    place[classes] = torch.arange(len(classes))
    faint = _faint(probabilities[classes], settings.mask_scale)
    calls, accepted = [], []
    for members in torch.arange(len(found)).split(_CALL) if len(found) else ():
        masks = sam.decode(
            encoding,
            Prompts(
                points=found.points[members, None].to(device),
                labels=torch.ones(len(members), 1, dtype=torch.long, device=device),
                boxes=found.boxes[members].to(device),
                masks=None if faint is None else faint[place[found.class_index[members]].to(device)],
            ),
        )
        calls.append(masks)
        accepted.append(masks.iou[:, 0].float().cpu() > settings.min_iou)
    return calls, torch.cat(accepted) if accepted else torch.zeros(0, dtype=torch.bool)


def _faint(probabilities: Tensor, scale: float | None) -> Tensor | None:
    """(C, h', w') logits of mask prompts from (C, h, w); None without a scale."""
    if scale is None or not len(probabilities):
        return None
    height, width = probabilities.shape[1:]
    shrink = min(1, _MASK_SIDE / max(height, width))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    return scale * F.interpolate(probabilities[None].float(), size, mode="bilinear", antialias=True)[0]


def coarse_labels(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) int64: the most probable class of each pixel, (K, h, w) being interpolated to that size."""
    shape = (probabilities.shape[1], probabilities.shape[2])
    if shape == size:
        return probabilities.argmax(dim=0)
    return ScoreMap(probabilities[None], None, shape, shape, size).labels(ClassProbabilities())


def coarse_scores(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, h, w) -> (K, H, W) float32, bilinear, half-pixel centres; never held twice."""
    scores = probabilities.new_empty(len(probabilities), *size, dtype=torch.float32)
    for plane, source in zip(scores, probabilities, strict=True):
        plane.copy_(resized(source, size))
    return scores


def resized(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) -> (H, W) float32, bilinear, half-pixel centres."""
    return F.interpolate(plane[None, None].float(), size, mode="bilinear")[0, 0]


def _cells(length: int, cells: int) -> Tensor:
    """(length,) int64: which of so many cells along a side the centre of each pixel lies in."""
    return (2 * torch.arange(length) + 1) * cells // (2 * length)
