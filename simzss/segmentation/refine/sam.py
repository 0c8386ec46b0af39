"""Class regions redrawn by a promptable segmenter (SAM).

Step 5 of Trident (Shi et al. 2024): each region of the coarse map gives the segmenter a box, a point and a faint mask;
its mask counts where its predicted IoU is high, and elsewhere the coarse map stays.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.data.settings import Background, ProtocolValues
from simzss.models.sam.sam import Prompts, Sam, SamEncoding, SamMasks
from simzss.segmentation.inference.encoder import ImageEncoding
from simzss.segmentation.refine.base import (
    CHUNK_BYTES,
    Counts,
    Refinement,
    Refiner,
    coarse_labels,
    coarse_scores,
    lost_classes,
    resized,
)
from simzss.segmentation.refine.geometry import Regions, regions
from simzss.segmentation.settings import SamRefinementSettings

SHORT_SIDE = 448
"""Short side in pixels of the map for which `min_area` is meant."""

_CALL = 256  # prompts of one call of the decoder: their mask prompts and masks take 64 MB each
_MASK_SIDE = 256  # the longer side of mask prompts: no decoder has a finer frame


@dataclass(frozen=True)
class RegionCounts(Counts):
    """Statistics of the regions of K classes.

    Attributes:
        prompts: (K,) int64 regions that prompted the segmenter.
        accepted: (K,) int64 of these, those whose mask was accepted.
        failed: (K,) int64 of these, those that keep their coarse scores.
        small: (K,) int64 regions that were too small for a prompt.
        lost: (K,) int64 images in which the coarse map has the class, and the refined one does not.
    """

    prompts: Tensor
    accepted: Tensor
    failed: Tensor
    small: Tensor
    lost: Tensor

    def by_name(self, names: Sequence[str]) -> dict[str, Any]:
        """See `Counts`."""
        table = {field.name: getattr(self, field.name).tolist() for field in fields(self)}
        return {
            count: {name: value for name, value in zip(names, values, strict=True) if value}
            for count, values in table.items()
        }


class SamRefiner(Refiner):
    """Regions redrawn by SAM; an open threshold is that of the background or the benchmark."""

    needs_sam = True
    settings: SamRefinementSettings

    def __init__(self, settings: SamRefinementSettings, sam: Sam, values: ProtocolValues = ProtocolValues()) -> None:
        self.settings = settings
        self.sam = sam
        self.values = values

    def __call__(self, image: ImageEncoding, probabilities: Tensor, background: Background) -> Refinement:
        """Refine one image: see `Refiner`."""
        assert image.sam is not None
        settings, size = self.settings.resolved(background, self.values), image.prepared.size
        return refine(self.sam, image.sam, probabilities, settings, size, background=background.present)

    def describe(self, background: Background) -> dict[str, Any]:
        """See `Refiner`."""
        return self.settings.resolved(background, self.values).plain()


@torch.no_grad()
def refine(
    sam: Sam,
    encoding: SamEncoding,
    probabilities: Tensor,
    settings: SamRefinementSettings,
    size: tuple[int, int],
    *,
    background: bool,
) -> "SamRefinement":
    """Redraw the regions of the classes.

    Args:
        sam: the segmenter.
        encoding: of the image.
        probabilities: (K, h, w) of the coarse map, on the segmenter's device; regions are found at this resolution.
        settings: with a threshold.
        size: H and W of the result.
        background: whether row 0 is the background.

    Returns:
        The refined map. Where no region is above the threshold it is the coarse one (with `rest`: background).
    """
    assert settings.threshold is not None
    min_area = settings.min_area * (min(probabilities.shape[1:]) / SHORT_SIDE) ** 2
    classes = range(int(background), len(probabilities))
    found = regions(probabilities, settings.threshold, min_area, classes)
    masks = RegionMasks(found, len(probabilities), *_decode(sam, encoding, probabilities, found, settings))
    return SamRefinement(probabilities, masks, settings.background if background else None, size)


class SamRefinement(Refinement):
    """Merged masks of one image, kept as small as the decoder made them: 256 kB a region.

    Args:
        probabilities: (K, h, w) of the coarse map.
        masks: of the regions.
        background: treatment of class 0, see `SamRefinementSettings`; None: it is no background.
        size: H and W.
    """

    counts: RegionCounts

    def __init__(
        self, probabilities: Tensor, masks: "RegionMasks", background: str | None, size: tuple[int, int]
    ) -> None:
        self._probabilities = probabilities
        self._masks = masks
        self._background = background
        self._size = size
        coarse = coarse_labels(probabilities, size)
        self.labels, self.decided = self._merge(coarse)
        self.counts = masks.counts(lost_classes(coarse, self.labels, len(probabilities)))

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Compute the merged scores where the regions decide, and the coarse probabilities elsewhere."""
        scores = coarse_scores(self._probabilities, self._size)
        scores.masked_fill_(self.decided, 0)
        strongest = scores.new_zeros(self._size)
        for row, score, mask, _ in self._masks.planes(self._probabilities, self._size):
            scores[row] = torch.where(self.decided, score, scores[row])
            strongest = torch.maximum(strongest, mask)
        if self._background is not None:
            scores[0] = torch.where(self.decided, self._background_score(strongest), scores[0])
        if self._background == "rest":
            left = ~self.decided
            scores[1:].masked_fill_(left, 0)
            scores[0].masked_fill_(left, 1)
        return scores

    @torch.no_grad()
    def _merge(self, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (H, W), and (H, W) bool: where the merged scores decide rather than the coarse map or, with `rest`,
        the background."""
        best = self._probabilities.new_zeros(self._size, dtype=torch.float32)
        strongest, label, covered = torch.zeros_like(best), torch.zeros_like(coarse), torch.zeros_like(best).bool()
        for row, score, mask, fallback in self._masks.planes(self._probabilities, self._size):
            label.masked_fill_(score > best, row)
            best = torch.maximum(best, score)
            strongest = torch.maximum(strongest, mask)
            covered |= fallback
        covered |= strongest >= 0.5
        covered &= best > 0  # a mask over probabilities that rounded to nothing says nothing
        if self._background is not None:
            label.masked_fill_(self._background_score(strongest) >= best, 0)
        if self._background == "compete":
            trimmed = torch.zeros(len(self._probabilities), dtype=torch.bool, device=coarse.device)
            trimmed[self._masks.accepted_classes] = True
            covered |= trimmed[coarse]
        elif self._background == "rest":
            coarse = torch.zeros_like(coarse)
        return torch.where(covered, label, coarse), covered

    def _background_score(self, strongest: Tensor) -> Tensor:
        """(H, W) score of the background beside the strongest mask (H, W); failed regions compete with it too."""
        share = 1 - strongest if self._background == "compete" else (strongest < 0.5).float()
        return resized(self._probabilities[0], self._size) * share


@dataclass(frozen=True)
class RegionMasks:
    """The segmenter's masks of P regions.

    Attributes:
        found: the regions.
        count: K classes.
        calls: of the decoder, in the order of the regions.
        accepted: (P,) bool on the CPU: predicted IoU is high enough.
    """

    found: Regions
    count: int
    calls: list[SamMasks]
    accepted: Tensor

    @property
    def accepted_classes(self) -> list[int]:
        """Return the classes that have an accepted mask."""
        return sorted(set(self.found.class_index[self.accepted].tolist()))

    def counts(self, lost: Tensor) -> RegionCounts:
        """Return the counts, `lost` included."""
        prompts, accepted = (
            self.found.class_index[chosen].bincount(minlength=self.count)
            for chosen in (torch.ones_like(self.accepted), self.accepted)
        )
        small = torch.zeros_like(prompts)
        for row, number in self.found.small.items():
            small[row] = number
        return RegionCounts(prompts, accepted, prompts - accepted, small, lost)

    def planes(self, probabilities: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield for each class that has regions: its row, its score (H, W), the strongest of its accepted masks (H, W)
        in 0..1, and the pixels of its failed regions (H, W) bool."""
        for row in sorted(set(self.found.class_index.tolist())):
            members = (self.found.class_index == row).nonzero()[:, 0]
            accepted = self.accepted[members]
            mask = probabilities.new_zeros(size, dtype=torch.float32)
            for logits in self._logits(members[accepted], size):
                mask = torch.maximum(mask, logits.amax(dim=0).sigmoid())
            union = self.found.union(members[~accepted].tolist()).to(probabilities.device)
            fallback = union[_cells(size[0], union.shape[0])][:, _cells(size[1], union.shape[1])]
            # within a class the probability is a factor of every score: the largest mask makes the largest score
            score = resized(probabilities[row], size) * mask.masked_fill(fallback, 1)
            yield row, score, mask, fallback

    def _logits(self, members: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        """Yield (n, H, W) logits of some masks, a few at a time."""
        at_once = max(1, CHUNK_BYTES // (4 * size[0] * size[1]))
        first = 0
        for masks in self.calls:
            last = first + len(masks.iou)
            own = members[(members >= first) & (members < last)] - first
            for part in own.split(at_once) if len(own) else ():
                yield masks.at(size, part.to(masks.iou.device))[:, 0]
            first = last


def _decode(
    sam: Sam, encoding: SamEncoding, probabilities: Tensor, found: Regions, settings: SamRefinementSettings
) -> tuple[list[SamMasks], Tensor]:
    """Masks of all regions, and which are accepted (P,) bool on the CPU."""
    device = probabilities.device
    classes = sorted(set(found.class_index.tolist()))
    index = torch.zeros(len(probabilities), dtype=torch.long)
    index[classes] = torch.arange(len(classes))
    faint = _mask_prompts(probabilities[classes], settings.mask_scale)
    calls, accepted = [], []
    for members in torch.arange(len(found)).split(_CALL) if len(found) else ():
        masks = sam.decode(
            encoding,
            Prompts(
                points=found.points[members, None].to(device),
                labels=torch.ones(len(members), 1, dtype=torch.long, device=device),
                boxes=found.boxes[members].to(device),
                masks=None if faint is None else faint[index[found.class_index[members]].to(device)],
            ),
        )
        calls.append(masks)
        accepted.append(masks.iou[:, 0].float().cpu() > settings.min_iou)
    return calls, torch.cat(accepted) if accepted else torch.zeros(0, dtype=torch.bool)


def _mask_prompts(probabilities: Tensor, scale: float | None) -> Tensor | None:
    """Logits (C, h', w') of mask prompts from (C, h, w); None without a scale."""
    if scale is None or not len(probabilities):
        return None
    height, width = probabilities.shape[1:]
    shrink = min(1, _MASK_SIDE / max(height, width))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    return scale * F.interpolate(probabilities[None].float(), size, mode="bilinear", antialias=True)[0]


def _cells(length: int, cells: int) -> Tensor:
    """(length,) int64: index of the cell, of so many along a side, that contains the centre of each pixel."""
    return (2 * torch.arange(length) + 1) * cells // (2 * length)
