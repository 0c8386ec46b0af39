"""Where the windows of a sliding-window inference stand."""

from torch import Tensor


def windows(length: int, size: int, stride: int) -> list[int]:
    """Start of each window along a side: every `stride`, the last one flush with the end; one if it fits whole."""
    if length <= size:
        return [0]
    starts = list(range(0, length - size, stride))
    return [*starts, length - size]


def cut(image: Tensor, size: int, stride: int) -> tuple[list[tuple[int, int]], list[Tensor]]:
    """Overlapping windows of an image.

    Args:
        image: (3, H, W).
        size: side of a window in pixels; a side of the image where that is shorter.
        stride: between windows.

    Returns:
        Top and left of each window, and the windows (3, h, w) as views, all of one shape.
    """
    height, width = image.shape[-2:]
    h, w = min(size, height), min(size, width)
    places = [(y, x) for y in windows(height, size, stride) for x in windows(width, size, stride)]
    return places, [image[:, y : y + h, x : x + w] for y, x in places]
