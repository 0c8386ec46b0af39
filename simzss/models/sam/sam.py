"""The interface of Segment Anything models: an image is encoded once, then prompts give masks.

A model sees a square frame of `size` pixels. SAM and MobileSAM put the image into its upper left corner and fill the
rest with zeros; SAM 2 stretches the image over all of it. Callers never meet the frame: prompts and masks are relative
to the image.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from simzss.errors import ConfigError, DataError
from simzss.models.fingerprint import fingerprint
from simzss.models.sam.attention import LastAttention as LastAttention
from simzss.models.sam.resize import SamResize as SamResize
from simzss.models.sam.sampling import bilinear, centres

PROMPTS_AT_ONCE = 64
"""Maximum number of prompts in a call of the decoder: each takes some 35 MB in float32 at the peak."""
_MASK_CELLS = 4  # cells of the decoder's mask grid per cell of the embedding, along each side; in SAM and in SAM 2


@dataclass(frozen=True, eq=False)
class Prompts:
    """P prompts in relative coordinates of the image: x and y in 0..1 of its width and height, 0, 0 its very corner.

    Attributes:
        points: (P, n, 2) x y, or None.
        labels: (P, n) int64 beside the points: 1 inside of what is meant, 0 outside.
        boxes: (P, 4) x0 y0 x1 y1, or None.
        masks: (P, H', W') float logits over the whole image at any size, or None.

    Raises:
        DataError: shapes that do not go together, or no prompt of any kind.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        given = {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) is not None}
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items()) or "none"
        fits = (
            (self.points is None) == (self.labels is None)
            and bool(given)
            and len({len(value) for value in given.values()}) == 1
            and (self.points is None or (self.points.ndim == 3 and self.points.shape[2] == 2))
            and (self.points is None or self.labels is None or self.labels.shape == self.points.shape[:2])
            and (self.boxes is None or (self.boxes.ndim == 2 and self.boxes.shape[1] == 4))
            and (self.masks is None or (self.masks.ndim == 3 and self.masks.shape[1] > 0 and self.masks.shape[2] > 0))
        )
        if not fits:
            raise DataError(f"prompts of SAM must be points (P, n, 2) with labels (P, n), boxes (P, 4) or masks "
                             f"(P, h, w), not {shapes}")  # fmt: skip

    def __len__(self) -> int:
        return next(len(value) for value in (self.points, self.boxes, self.masks) if value is not None)

    def part(self, start: int, stop: int, like: Tensor) -> "Prompts":
        """Return the prompts `start` to `stop` on the device of a tensor, all but the labels in its dtype."""

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[start:stop].to(like)

        labels = None if self.labels is None else self.labels[start:stop].to(like.device, torch.int64)
        return Prompts(cut(self.points), labels, cut(self.boxes), cut(self.masks))


@dataclass(frozen=True, eq=False)
class SamEncoding:
    """Output of the encoder for one image.

    Attributes:
        embedding: (C, h, w) float32 of the cells that show the image. Where the image ends within a cell, the cell
            counts, so that the last row or column may be a fraction.
        attention: last global attention; None where it was not asked for.
        cells: (height, width) of the image in cells of the embedding, fractions included.
    """

    embedding: Tensor
    attention: LastAttention | None
    cells: tuple[float, float]
    _frame: Tensor = field(repr=False)  # (1, C, H, W) the embedding of the whole frame, in the dtype of the weights
    _fine: tuple[Tensor, ...] = field(default=(), repr=False)  # SAM 2's two finer maps


@dataclass(frozen=True, eq=False)
class SamMasks:
    """Masks of P prompts, M each.

    Attributes:
        logits: (P, M, h', w') float32 on the decoder's grid, which covers the whole frame.
        iou: (P, M) float32, predicted IoU with the ground truth.
        cells: (height, width) of the image in cells of that grid, fractions included.
    """

    logits: Tensor
    iou: Tensor
    cells: tuple[float, float]

    def at(self, size: tuple[int, int], index: Tensor | None = None) -> Tensor:
        """Resample logits to an image size (H, W), bilinear between the cells: (len(index), M, H, W).

        Args:
            size: height and width of the result, which covers the image exactly, whatever its size.
            index: (n,) int64, indices of prompts; None for all. A few at a time bound the memory.
        """
        chosen = self.logits if index is None else self.logits[index.to(self.logits.device)]
        return bilinear(chosen, centres(size[0], self.cells[0]), centres(size[1], self.cells[1]))


class Sam(nn.Module, ABC):
    """A frozen Segment Anything model; always in evaluation mode.

    Thread-safe: no state of an image is kept on it.

    Args:
        name: for messages.
        model: transformers' model, with `vision_encoder`, `prompt_encoder` and `mask_decoder`.
        resizer: resizes images to its frame.
        has_attention: `encode` can return the last global attention.
    """

    mean: Tensor
    std: Tensor
    positions: Tensor

    def __init__(self, name: str, model: Any, resizer: SamResize, has_attention: bool) -> None:
        super().__init__()
        self.name = name
        self.model: Any = model
        self.resizer = resizer
        self.has_attention = has_attention
        self.fingerprint = fingerprint(model)
        # ImageNet's, in 0..255: SAM, MobileSAM and SAM 2 all use them.
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1), persistent=False)
        with torch.no_grad():
            positions = model.get_image_wide_positional_embeddings()
        self.register_buffer("positions", positions.clone(), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def size(self) -> int:
        """Side of the frame in pixels."""
        return self.resizer.size

    def train(self, mode: bool = True) -> "Sam":
        """Stay in evaluation mode: nothing here learns."""
        return super().train(False)

    def use_precision(self, precision: str) -> "Sam":
        """Convert the weights of the encoder and the mask decoder to bfloat16 for `bf16-mixed`.

        The prompt encoder stays as it is: bfloat16 has too few digits for a coordinate, and it costs nothing.

        Raises:
            ConfigError: full precision is asked for after the weights were rounded.
        """
        lowered = self._dtype == torch.bfloat16
        if precision == "bf16-mixed":
            self.model.vision_encoder.to(torch.bfloat16)
            self.model.mask_decoder.to(torch.bfloat16)
        elif lowered:
            raise ConfigError(f"precision={precision} is not possible any more: the weights of SAM {self.name} are "
                             "rounded to bfloat16; load the model again")  # fmt: skip
        return self

    def resize(self, image: Image.Image) -> Tensor:
        """Resize an image for `encode`: (3, h, w) uint8."""
        return self.resizer(image)

    @torch.no_grad()
    def encode(self, pixels: Tensor, attention: bool = False) -> SamEncoding:
        """Encode one image.

        Args:
            pixels: (3, h, w) uint8 of the size that `resize` returns.
            attention: return the last global attention too.

        Raises:
            ConfigError: an attention that this model does not have.
            DataError: pixels of another size.
        """
        if pixels.ndim != 3 or len(pixels) != 3 or min(pixels.shape[1:]) < 1 or not self._takes(*pixels.shape[1:]):
            wanted = f"{self.size} x {self.size}" if self.resizer.square else f"with a long side of {self.size}"
            raise DataError(f"SAM {self.name} takes RGB images {wanted}, not of shape {tuple(pixels.shape)}")
        if attention and not self.has_attention:
            raise ConfigError(f"SAM {self.name} has no global attention over the image's cells to give")
        height, width = int(pixels.shape[1]), int(pixels.shape[2])
        frame = (pixels.to(self.mean.device, self.mean.dtype) - self.mean) / self.std
        frame = F.pad(frame, (0, self.size - width, 0, self.size - height))[None]
        embedding, fine, last = self._encode(frame.to(self._dtype), (height, width), attention)
        cells = (height * embedding.shape[2] / self.size, width * embedding.shape[3] / self.size)
        visible = embedding[0, :, : math.ceil(cells[0]), : math.ceil(cells[1])].float()
        return SamEncoding(visible, last, cells, embedding, fine)

    @torch.no_grad()
    def decode(self, encoding: SamEncoding, prompts: Prompts, multimask: bool = False) -> SamMasks:
        """Predict masks of prompts, `PROMPTS_AT_ONCE` in a call of the decoder.

        Args:
            encoding: the image, encoded by this model.
            prompts: P prompts.
            multimask: three masks of different extent for each prompt (M = 3), not one (M = 1).
        """
        side = _MASK_CELLS * encoding._frame.shape[-1]
        cells = (encoding.cells[0] * _MASK_CELLS, encoding.cells[1] * _MASK_CELLS)
        logits, iou = [], []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            part = prompts.part(start, start + PROMPTS_AT_ONCE, self.mean)
            found = self._decode(encoding, self._framed(part, cells, side), len(part), multimask)
            logits.append(found[0][:, 0].float())
            iou.append(found[1][:, 0].float())
        if not logits:
            masks = self.model.mask_decoder.num_multimask_outputs if multimask else 1
            empty = torch.zeros(0, masks, side, side, device=encoding._frame.device)
            return SamMasks(empty, empty[..., 0, 0], cells)
        return SamMasks(torch.cat(logits), torch.cat(iou), cells)

    @abstractmethod
    def _encode(
        self, frame: Tensor, image: tuple[int, int], attention: bool
    ) -> tuple[Tensor, tuple[Tensor, ...], LastAttention | None]:
        """Return embedding (1, C, H, W) of a frame (1, 3, size, size), finer maps, and the last attention."""

    @abstractmethod
    def _decode(
        self, encoding: SamEncoding, prompts: dict[str, Tensor | None], count: int, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Return logits (P, 1, M, h', w') and predicted IoU (P, 1, M) of prompts in the form of `_framed`."""

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.vision_encoder.parameters()).dtype

    def _takes(self, height: int, width: int) -> bool:
        return height == width == self.size if self.resizer.square else max(height, width) == self.size

    def _framed(self, prompts: Prompts, cells: tuple[float, float], side: int) -> dict[str, Tensor | None]:
        """Convert prompts to pixels of the frame, one prompt per batch entry, as transformers takes them.

        The second axis of a prompt encoder is for prompts that share one mask prompt.
        """
        # Coordinates here are continuous, and transformers, like the authors, takes indices of pixels and adds half a
        # pixel to get their centres; what it adds is taken off before.
        scale = self.mean.new_tensor([cells[1], cells[0]]) * (self.size / side)
        points = None if prompts.points is None else prompts.points * scale - 0.5
        boxes = None if prompts.boxes is None else prompts.boxes * scale.repeat(2) - 0.5
        masks = prompts.masks
        if masks is not None:
            rows = _within(masks.shape[1], cells[0], side)
            columns = _within(masks.shape[2], cells[1], side)
            masks = F.pad(bilinear(masks, rows, columns), (0, side - len(columns), 0, side - len(rows)))
        return {
            "input_points": None if points is None else points[:, None],
            "input_labels": None if prompts.labels is None else prompts.labels[:, None],
            "input_boxes": None if boxes is None else boxes[:, None].contiguous(),
            "input_masks": None if masks is None else masks[:, None],
        }


def _within(count: int, cells: float, side: int) -> Tensor:
    """Return positions in a mask of `count` pixels of the frame's cells whose centre is in the image.

    (n,) float64; at least one, for an image thinner than half a cell.
    """
    inside = min(side, max(1, math.ceil(cells - 0.5)))
    return (torch.arange(inside, dtype=torch.float64) + 0.5) * (count / cells) - 0.5
