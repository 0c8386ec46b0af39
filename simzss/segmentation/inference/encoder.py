"""The frozen models' view of images: windows through the backbone, joined as the protocol says, against the classes.

Windows of many images go through the backbone together. Their scores are averaged (`inference=slide`), or their
features are stitched into one map (`stitch`), which may be aggregated over what belongs together, before the last
norm, the head and the cosines. A mask head cuts windows of its own, and gives scores of the whole image.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simzss.models.sam.sam import Sam, SamEncoding
from simzss.models.simzss import SimZSS
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.inference.aggregate import aggregate
from simzss.segmentation.inference.mask_head import mask_head_scores
from simzss.segmentation.inference.prepare import Prepared
from simzss.segmentation.inference.proxy import window_proxy
from simzss.segmentation.inference.scores import WindowScores
from simzss.segmentation.inference.stitch import Stitch
from simzss.segmentation.inference.windows import Windows, cut, shape_of
from simzss.segmentation.settings import AggregateSettings, Protocol


@dataclass(frozen=True)
class ImageEncoding:
    """Output of the frozen models for one image.

    Attributes:
        prepared: the photo.
        scores: of each classifier, at any size.
        sam: SAM's encoding of the whole image, for refinements, without its attention; None without SAM.
    """

    prepared: Prepared
    scores: tuple[WindowScores, ...]
    sam: SamEncoding | None


class ImageEncoder:
    """Encodes images by the frozen models; keeps nothing of an image.

    Args:
        model: with the backbone.
        protocol: resolved.
        aggregation: resolved.
        sam: a Segment Anything model, where the aggregation or the proxy needs one.
        batch_size: windows at a time.
    """

    def __init__(
        self, model: SimZSS, protocol: Protocol, aggregation: AggregateSettings, sam: Sam | None, batch_size: int
    ) -> None:
        self.model = model
        self.protocol = protocol
        self.aggregation = aggregation
        self.sam = sam
        self.batch_size = batch_size

    @torch.no_grad()
    def encode(self, images: Sequence[Prepared], classifiers: Sequence[Classifier]) -> Iterator[ImageEncoding]:
        """Yield the encoding of each image, in their order."""
        encodings = [None if image.sam is None else self._encode_sam(image.sam, not image.parts) for image in images]
        windows = [self._windows(image) for image in images]
        if self.model.mask_head is not None:
            pixels = [image.pixels for image in images]
            scores = mask_head_scores(self.model, self.model.mask_head, pixels, classifiers, self.batch_size)
        elif self.protocol.inference == "stitch" or self.aggregation.kind != "none":
            scores = self._stitched(images, windows, encodings, classifiers)
        else:
            scores = self._by_window(windows, encodings, classifiers)
        slide = self.protocol.inference == "slide"
        for image, own, encoding, maps in zip(images, windows, encodings, scores, strict=True):
            shapes = (own.positions if slide else None, own.shape, shape_of(image.pixels))
            kept = None if encoding is None else replace(encoding, attention=None)  # large, and not needed any more
            yield ImageEncoding(image, tuple(WindowScores(one, *shapes) for one in maps), kept)

    @property
    def _device(self) -> torch.device:
        return self.model.backbone.mean.device

    def _windows(self, image: Prepared) -> Windows:
        if self.protocol.inference == "whole":
            return Windows(image.pixels, [(0, 0)], [image.pixels])
        return cut(image.pixels, self.protocol.crop_size, self.protocol.stride)

    def _encode_sam(self, pixels: Tensor, aggregates: bool) -> SamEncoding:
        """Encode the whole image or a part; its attention only where it serves the aggregation."""
        assert self.sam is not None
        return self.sam.encode(pixels.to(self._device), aggregates and self.aggregation.kind == "attention")

    def _by_window(
        self, windows: Sequence[Windows], encodings: Sequence[SamEncoding | None], classifiers: Sequence[Classifier]
    ) -> Iterator[list[Tensor]]:
        """For each image and each classifier the cosines (W, S, h, w) of its windows."""
        found: dict[tuple[int, int], list[Tensor]] = {}
        for keys, maps in self._maps(windows, encodings):
            scores = self._scores(maps, classifiers)
            found |= {key: [part[row] for part in scores] for row, key in enumerate(keys)}
        for index, own in enumerate(windows):
            parts = [found[index, number] for number in range(len(own.crops))]
            yield [torch.stack(same) for same in zip(*parts, strict=True)]

    def _stitched(
        self,
        images: Sequence[Prepared],
        windows: Sequence[Windows],
        encodings: Sequence[SamEncoding | None],
        classifiers: Sequence[Classifier],
    ) -> Iterator[list[Tensor]]:
        """For each image and each classifier the cosines (1, S, h, w) of one map of all windows."""
        stitches = [Stitch(own.positions, own.shape, shape_of(own.image)) for own in windows]
        for keys, maps in self._maps(windows, encodings):
            for (index, number), cells in zip(keys, maps, strict=True):
                stitches[index].add(number, cells)
        for image, stitch, encoding in zip(images, stitches, encodings, strict=True):
            yield self._scores(self._aggregated(stitch.result(), image, encoding)[None], classifiers)

    def _aggregated(self, features: Tensor, image: Prepared, whole: SamEncoding | None) -> Tensor:
        """Features (C, h, w) of a whole image, averaged over what belongs together if the settings say so."""
        if self.aggregation.kind == "none":
            return features
        encodings = [self._encode_sam(part, aggregates=True) for part in image.parts]
        if not encodings and self.aggregation.needs_sam:
            assert whole is not None
            encodings = [whole]
        return aggregate(features, encodings, self.aggregation, image.size)

    def _scores(self, maps: Tensor, classifiers: Sequence[Classifier]) -> list[Tensor]:
        """Cosines (B, S, h, w) with each classifier of maps (B, C, h, w) before the norm and the head."""
        patches, grid = self.model.finish_patches(maps), shape_of(maps)
        return [classifier.similarity(patches).unflatten(-1, grid) for classifier in classifiers]

    def _maps(
        self, windows: Sequence[Windows], encodings: Sequence[SamEncoding | None]
    ) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
        """Yield maps (B, C, h, w) of windows before the norm and the head, with the image and the number of each.

        Windows of one shape go together, whichever image they are from.
        """
        by_shape: defaultdict[object, list[tuple[int, int]]] = defaultdict(list)
        proxies: dict[tuple[int, int], Tensor] = {}
        for index, (own, encoding) in enumerate(zip(windows, encodings, strict=True)):
            for number, position in enumerate(own.positions):
                if guided_by_sam(self.model):
                    assert encoding is not None
                    proxies[index, number] = window_proxy(encoding, position, own.shape, shape_of(own.image))
                proxy = proxies.get((index, number))
                by_shape[own.shape, None if proxy is None else proxy.shape].append((index, number))
        for keys in by_shape.values():
            for start in range(0, len(keys), self.batch_size):
                members = keys[start : start + self.batch_size]
                batch = torch.stack([windows[index].crops[number] for index, number in members]).to(self._device)
                features = torch.stack([proxies[key] for key in members]) if proxies else None
                yield members, self.model.backbone.patch_map(batch, features)


def guided_by_sam(model: SimZSS) -> bool:
    """Tell whether SAM's embedding is the proxy of the backbone's last block (`proxy=sam`)."""
    return model.backbone.features == "proxy" and model.backbone.proxy_backbone is None
