"""What the frozen models see of images: windows through the backbone, joined as the protocol says, against the classes.

Windows of many images go through the backbone together. Their scores are averaged (`inference=slide`), or their
features are spliced into one map (`splice`), which a correlation may average over what belongs together, before the
last norm, the head and the cosines. A head that was trained with masks cuts windows of its own, and gives scores of the
whole image.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from simzss.models.mask_head.head import MultiResHead
from simzss.models.mask_head.views import views_per_image
from simzss.models.sam.sam import Sam, SamEncoding
from simzss.models.simzss import SimZSS
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.inference.aggregate import Correlation, correlate
from simzss.segmentation.inference.prepare import Prepared
from simzss.segmentation.inference.proxy import window_guide
from simzss.segmentation.inference.scores import ScoreMap
from simzss.segmentation.inference.stitch import Splice
from simzss.segmentation.inference.windows import cut
from simzss.segmentation.protocol import Protocol

_Windows = tuple[list[tuple[int, int]], list[Tensor]]
"""Places of windows, top and left in pixels of the resized image, and the windows (3, h, w)."""


@dataclass(frozen=True)
class Seen:
    """What was seen of one image.

    Attributes:
        scores: for each classifier its scores at any size (height, width).
        encoding: SAM's of the whole image, for refinements, its attention having served; None without SAM.
    """

    scores: list[Callable[[tuple[int, int]], ScoreMap]]
    encoding: SamEncoding | None


class Vision:
    """The frozen models and how they look at images; nothing of an image is kept.

    Args:
        model: with the backbone.
        protocol: resolved.
        correlation: resolved.
        sam: a Segment Anything model, where the correlation or the proxy asks one.
        batch_size: windows at a time.
    """

    def __init__(
        self, model: SimZSS, protocol: Protocol, correlation: Correlation, sam: Sam | None, batch_size: int
    ) -> None:
        self.model = model
        self.protocol = protocol
        self.correlation = correlation
        self.sam = sam
        self.batch_size = batch_size

    @torch.no_grad()
    def look(self, images: Sequence[Prepared], classifiers: Sequence[Classifier]) -> Iterator[Seen]:
        """What is seen of each image, in their order."""
        whole = [None if image.sam is None else self._seen(image.sam, self._attends(image)) for image in images]
        windows = [self._windows(image) for image in images]
        if self.model.multires is None:
            similarities = self._similarities(images, windows, whole, classifiers)
        else:
            similarities = self._by_head(images, self.model.multires, classifiers)
        for image, (places, cuts), encoding, own in zip(images, windows, whole, similarities, strict=True):
            slides = self.protocol.inference == "slide"
            shapes = (places if slides else None, shape_of(cuts[0]), shape_of(image.pixels))
            kept = None if encoding is None else replace(encoding, attention=None)  # which has served, and is large
            yield Seen([partial(ScoreMap, scores, *shapes) for scores in own], kept)

    def _windows(self, image: Prepared) -> _Windows:
        if self.protocol.inference == "whole":
            return [(0, 0)], [image.pixels]
        return cut(image.pixels, self.protocol.crop_size, self.protocol.stride)

    def _seen(self, pixels: Tensor, attention: bool) -> SamEncoding:
        assert self.sam is not None
        return self.sam.encode(pixels.to(self.model.backbone.mean.device), attention)

    def _attends(self, image: Prepared) -> bool:
        """Whether the attention of the whole image correlates its features."""
        return self.correlation.kind == "attention" and not image.parts

    def _similarities(
        self,
        images: Sequence[Prepared],
        windows: Sequence[_Windows],
        whole: Sequence[SamEncoding | None],
        classifiers: Sequence[Classifier],
    ) -> Iterator[list[Tensor]]:
        """For each image and each classifier the (W, S, h, w) cosines of its windows, or of one map (W = 1)."""
        owners = [(image, number) for image, (places, _) in enumerate(windows) for number in range(len(places))]
        maps = self._maps(images, windows, whole)
        if self.protocol.inference != "splice" and self.correlation.kind == "none":
            found: dict[tuple[int, int], list[Tensor]] = {}
            for members, batch in maps:
                scores = self._scores(batch, classifiers)
                found |= {owners[member]: [part[row] for part in scores] for row, member in enumerate(members)}
            for owner, (places, _) in enumerate(windows):
                own = [found[owner, number] for number in range(len(places))]
                yield [torch.stack(parts) for parts in zip(*own, strict=True)]
            return
        splices = [
            Splice(places, shape_of(cuts[0]), shape_of(image.pixels))
            for image, (places, cuts) in zip(images, windows, strict=True)
        ]
        for members, batch in maps:
            for member, cells in zip(members, batch, strict=True):
                owner, number = owners[member]
                splices[owner].add(number, cells)
        for image, splice, encoding in zip(images, splices, whole, strict=True):
            yield self._scores(self._correlated(splice.result(), image, encoding)[None], classifiers)

    def _by_head(
        self, images: Sequence[Prepared], head: MultiResHead, classifiers: Sequence[Classifier]
    ) -> Iterator[list[Tensor]]:
        """For each image and each classifier (1, S, h, w) scores by a head that was trained with masks.

        Scores are logarithms of probabilities times the temperature, so that the classifier's softmax gives those back.
        """
        shares = [_shares(head, classifier).to(self.model.backbone.mean.device) for classifier in classifiers]
        found: dict[int, list[Tensor]] = {}
        by_shape: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            by_shape[shape_of(image.pixels)].append(index)
        for shape, indices in by_shape.items():
            step = max(1, self.batch_size // views_per_image(*shape, head.config.window, head.config.views))
            for members in (indices[start : start + step] for start in range(0, len(indices), step)):
                batch = torch.stack([images[index].pixels for index in members]).to(self.model.backbone.mean.device)
                levels = head.look(self.model.backbone, self.model.feature_norm.patches, batch)
                said = head(levels)[-1]
                for classifier, share in zip(classifiers, shares, strict=True):
                    maps = head.maps(said, levels, classifier.similarity, share)
                    scores = maps.clamp(min=torch.finfo(maps.dtype).tiny).log() * classifier.temperature
                    for index, own in zip(members, scores, strict=True):
                        found.setdefault(index, []).append(own[None])
        yield from (found[index] for index in range(len(images)))

    def _correlated(self, features: Tensor, image: Prepared, whole: SamEncoding | None) -> Tensor:
        """(C, h, w) features of a whole image averaged over what belongs together."""
        if self.correlation.kind == "none":
            return features
        attends = self.correlation.kind == "attention"
        encodings = [self._seen(part, attends) for part in image.parts]
        if not encodings and self.correlation.needs_sam:
            assert whole is not None
            encodings = [whole]
        return correlate(features, encodings, self.correlation, image.size)

    def _scores(self, maps: Tensor, classifiers: Sequence[Classifier]) -> list[Tensor]:
        """(B, C, h, w) maps before the norm and the head -> (B, S, h, w) cosines of each classifier."""
        patches, grid = self.model.finish_patches(maps), shape_of(maps)
        return [classifier.similarity(patches).unflatten(-1, grid) for classifier in classifiers]

    def _maps(
        self, images: Sequence[Prepared], windows: Sequence[_Windows], whole: Sequence[SamEncoding | None]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Maps (B, C, h, w) of windows before the norm and the head, and which of all windows they are.

        Windows of one shape go together, whatever image they are of.
        """
        cuts = [window for _, own in windows for window in own]
        guides: list[Tensor | None] = [None] * len(cuts)
        if guided_by_sam(self.model):
            guides = [
                window_guide(encoding, place, shape_of(own[0]), shape_of(image.pixels))
                for image, (places, own), encoding in zip(images, windows, whole, strict=True)
                for place in places
            ]
        by_shape: defaultdict[Any, list[int]] = defaultdict(list)
        for index, (window, guide) in enumerate(zip(cuts, guides, strict=True)):
            by_shape[window.shape, None if guide is None else guide.shape].append(index)
        for indices in by_shape.values():
            for start in range(0, len(indices), self.batch_size):
                members = indices[start : start + self.batch_size]
                batch = torch.stack([cuts[index] for index in members]).to(self.model.backbone.mean.device)
                guiding = [guide for index in members if (guide := guides[index]) is not None]
                yield members, self.model.backbone.patch_map(batch, torch.stack(guiding) if guiding else None)


def _shares(head: MultiResHead, classifier: Classifier) -> Tensor:
    """(S) how much the frozen model's own opinion counts for each class and background word."""
    trained, config = set(head.trained), head.config
    known = [not trained.isdisjoint(names) for names in classifier.rows]
    return torch.tensor([config.learned_share if yes else config.unseen_share for yes in known])


def guided_by_sam(model: SimZSS) -> bool:
    """Whether SAM's embedding guides the backbone's last block (`proxy=sam`)."""
    return model.backbone.features == "proxy" and model.backbone.guide is None


def shape_of(image: Tensor) -> tuple[int, int]:
    """Height and width."""
    return image.shape[-2], image.shape[-1]
