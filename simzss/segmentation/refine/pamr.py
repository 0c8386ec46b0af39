"""Pixel-adaptive mask refinement (PAMR): scores spread between pixels of like colour.

Araslanov & Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020, section 3.3; the width of the
kernel and the pixels that its standard deviation runs over are those of the authors' release (visinf/1-stage-wseg).
"""

import torch
from torch import Tensor

from simzss.data.settings import Background
from simzss.segmentation.inference.encoder import ImageEncoding
from simzss.segmentation.refine.base import MapRefinement, Refinement, Refiner
from simzss.segmentation.settings import PamrSettings

BANDWIDTH = 0.1
"""Difference of colour at which the affinity falls to 1/e, in local standard deviations."""

CHUNK_BYTES = 2**24
"""Bytes of scores at a time, at least one class."""

TILE_BYTES = 2**19
"""Bytes of the rows that take all their neighbours in one go: they stay in a core's cache meanwhile."""


class PamrRefiner(Refiner):
    """PAMR on the resized image."""

    settings: PamrSettings

    def __init__(self, settings: PamrSettings) -> None:
        self.settings = settings

    def __call__(self, image: ImageEncoding, probabilities: Tensor, background: Background) -> Refinement:
        """Refine one image: see `Refiner`."""
        colours = image.prepared.pixels.to(probabilities.device).float()
        refined = pamr(colours, probabilities, self.settings.iterations, self.settings.dilations)
        return MapRefinement(refined, image.prepared.size)


@torch.no_grad()
def pamr(image: Tensor, scores: Tensor, iterations: int, dilations: tuple[int, ...]) -> Tensor:
    """Replace every pixel's scores by the affinity-weighted mean of its neighbours', `iterations` times.

    The neighbours are the eight pixels around at the distance of each dilation; beyond the image its edge repeats.

    Args:
        image: (3, H, W) colours on any scale.
        scores: (K, H, W) on the image's device, such as probabilities.
        iterations: number of replacements.
        dilations: distances of the neighbours in pixels.

    Returns:
        (K, H, W) float32.
    """
    weights = affinity(image, dilations)
    refined = torch.empty_like(scores, dtype=torch.float32)
    (height, width), (top, left) = scores.shape[1:], _reach(scores.shape, dilations)
    classes = max(1, CHUNK_BYTES // (2 * 4 * (height + 2 * top) * (width + 2 * left)))  # two padded buffers
    for source, target in zip(scores.split(classes), refined.split(classes), strict=True):
        target.copy_(_spread(source.float(), weights, iterations, dilations))
    return refined


def affinity(image: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """Compute the weights of a pixel's neighbours: softmax over all of them of minus the difference in colour.

    The difference to a neighbour is taken per channel, over `BANDWIDTH` of the channel's standard deviation around the
    pixel, and averaged over the channels. The standard deviation is one for all dilations: of the sample of the 3 x 3
    pixels of each, the pixel itself among them each time.

    Args:
        image: (3, H, W).
        dilations: D distances.

    Returns:
        (8 D, H, W) float32 whose sum over the neighbours is 1, in the order of `_neighbours`.
    """
    image = image.float()
    neighbours = _neighbours(_pad(image, dilations), image.shape, dilations)
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for neighbour in neighbours:
        difference = neighbour - image
        total += difference
        squares.addcmul_(difference, difference)
    # Around the pixel's own value, which is one ninth of the sample, the subtraction leaves at least a ninth of the
    # squares: one pass is exact enough in single precision, and never below 0.
    count = 9 * len(dilations)
    deviation = ((squares - total.square() / count) / (count - 1)).sqrt()
    scale = 1 / (BANDWIDTH * deviation + 1e-8)
    logits = torch.stack([-((neighbour - image).abs() * scale).mean(dim=0) for neighbour in neighbours])
    return logits.softmax(dim=0)


def _spread(scores: Tensor, weights: Tensor, iterations: int, dilations: tuple[int, ...]) -> Tensor:
    """Iterate on some classes: (k, H, W), (8 D, H, W) -> (k, H, W)."""
    count, height, width = scores.shape
    rows = max(1, TILE_BYTES // (4 * count * width))
    source = _pad(scores, dilations)
    target = torch.empty_like(source)
    for _ in range(iterations):
        neighbours = _neighbours(source, scores.shape, dilations)
        mean = _inside(target, scores.shape)
        for start in range(0, height, rows):
            tile = slice(start, start + rows)
            mean[:, tile] = 0
            for neighbour, weight in zip(neighbours, weights, strict=True):
                mean[:, tile].addcmul_(neighbour[:, tile], weight[tile])
        _repeat_edges(target, scores.shape)
        source, target = target, source
    return _inside(source, scores.shape)


def _neighbours(padded: Tensor, shape: torch.Size, dilations: tuple[int, ...]) -> list[Tensor]:
    """Views (…, H, W) of a padded tensor: the neighbours of each pixel, 8 per dilation."""
    return [
        _inside(padded, shape, dy, dx)
        for dilation in dilations
        for dy in (-dilation, 0, dilation)
        for dx in (-dilation, 0, dilation)
        if dy or dx
    ]


def _inside(padded: Tensor, shape: torch.Size, dy: int = 0, dx: int = 0) -> Tensor:
    """View (…, H, W) of a padded tensor, moved by (dy, dx), at most by the margin."""
    height, width = shape[-2:]
    top, left = _margins(padded, shape)
    y, x = top + max(-top, min(dy, top)), left + max(-left, min(dx, left))
    return padded[..., y : y + height, x : x + width]


def _reach(shape: torch.Size, dilations: tuple[int, ...]) -> tuple[int, int]:
    """Margins that the dilations need; no wider than the image, where every pixel reaches the edge."""
    return min(max(dilations), shape[-2] - 1), min(max(dilations), shape[-1] - 1)


def _margins(padded: Tensor, shape: torch.Size) -> tuple[int, int]:
    """Pixels above and below, left and right."""
    return (padded.shape[-2] - shape[-2]) // 2, (padded.shape[-1] - shape[-1]) // 2


def _pad(inner: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """Repeat the edges of (…, H, W) as far as the dilations reach."""
    (height, width), (top, left) = inner.shape[-2:], _reach(inner.shape, dilations)
    padded = inner.new_empty(*inner.shape[:-2], height + 2 * top, width + 2 * left)
    _inside(padded, inner.shape).copy_(inner)
    _repeat_edges(padded, inner.shape)
    return padded


def _repeat_edges(padded: Tensor, shape: torch.Size) -> None:
    """Fill the margins from the pixels inside, in place."""
    height, width = shape[-2:]
    top, left = _margins(padded, shape)
    inner_rows = padded[..., top : top + height, :]
    inner_rows[..., :left] = inner_rows[..., left : left + 1]
    inner_rows[..., left + width :] = inner_rows[..., left + width - 1 : left + width]
    padded[..., :top, :] = padded[..., top : top + 1, :]
    padded[..., top + height :, :] = padded[..., top + height - 1 : top + height, :]
