"""An image as windows side by side, and maps of windows as one map of the image."""

from torch import Tensor

from simzss.errors import InputError


def slice_windows(images: Tensor, window: int) -> Tensor:
    """Windows of images, row by row, without overlap.

    Args:
        images: (B, C, R * window, Q * window).
        window: side in pixels.

    Returns:
        (B * R * Q, C, window, window), those of one image one after another.

    Raises:
        InputError: sides that are no multiples of the window.
    """
    height, width = images.shape[-2:]
    if not height or not width or height % window or width % window:
        raise InputError(f"an image of {height} x {width} pixels is not made of windows of {window} x {window}")
    parts = images.unflatten(3, (-1, window)).unflatten(2, (-1, window))  # (B, C, R, window, Q, window)
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def restore(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Maps of windows in their places: the inverse of `slice_windows` for any number of cells a window.

    Args:
        maps: (B * rows * columns, C, h, w).
        rows: R, windows below one another.
        columns: Q, windows beside one another.

    Returns:
        (B, C, R * h, Q * w).
    """
    parts = maps.unflatten(0, (-1, rows, columns))  # (B, R, Q, C, h, w)
    return parts.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
