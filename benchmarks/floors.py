"""Operations and bytes that the parts of a training step need: pure functions of shapes.

A product of (m, k) and (k, n) is 2 m k n operations: a multiplication and an addition each. Bytes are counted operator
by operator: each reads its inputs and writes its outputs once, attention, pooling and a loss are one operator, and an
addition belongs to the product before it. Towers compute in 2 bytes a value. What an implementation does beyond this
(padding, casts, copies, activations computed twice) is not counted: that is what a floor is for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

TOWER = 2
"""Bytes of a value in the towers (bfloat16)."""
FULL = 4
"""Bytes of a value in losses and optimiser (float32)."""

# Values that the operators of one pre-norm block read and write for each token, in widths, without its hidden layer:
# norm 2, queries-keys-values 4, attention 4, its projection with the addition 3, norm 2, and of the hidden layer's two
# products 1 + 2 (with the addition).
_FORWARD_WIDTHS = 18
# Gradients of the same: two norms with the gradient that goes around them 4 + 4, each product for its input and for its
# weight 8 + 4 + 2 + 2, attention 8.
_BACKWARD_WIDTHS = 32
# The hidden layer, in its own width: written, then read and written by the activation, then read.
_FORWARD_HIDDEN = 4
# Each of its two products meets it twice, and the activation reads two and writes one.
_BACKWARD_HIDDEN = 7
_ADAMW_OPERATIONS = 15  # a parameter: decay 1, two averages 3 + 4, two corrections 2, root and eps 2, the step 3
_ADAMW_BYTES = 7 * FULL  # a parameter: itself and both averages read and written, its gradient read


@dataclass(frozen=True)
class Work:
    """Arithmetic operations, and bytes to and from memory."""

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Work":
        return Work(self.flops * times, self.bytes * times)


@dataclass(frozen=True)
class Blocks:
    """Shape of a stack of pre-norm transformer blocks: `hidden` is the width within the MLP."""

    depth: int
    width: int
    hidden: int

    @property
    def weights(self) -> int:
        """Return the number of values in the matrices of all blocks."""
        return self.depth * (4 * self.width**2 + 2 * self.width * self.hidden)


@dataclass(frozen=True)
class Vision:
    """Shape of a ViT: `tokens` of an image are its patches and `prefix` others (class token, registers)."""

    blocks: Blocks
    patches: int
    prefix: int
    patch: int

    @property
    def tokens(self) -> int:
        """Return the number of tokens of an image."""
        return self.patches + self.prefix


@dataclass(frozen=True)
class Text:
    """Shape of a text tower: embeddings of `vocabulary` tokens and `positions`, blocks, a projection to `out`."""

    blocks: Blocks
    vocabulary: int
    positions: int
    out: int

    @property
    def parameters(self) -> int:
        """Return the number of values in matrices and vectors: four biases and two norms a block, the final norm."""
        width, hidden = self.blocks.width, self.blocks.hidden
        vectors = self.blocks.depth * (5 * width + hidden + 4 * width) + 2 * width
        tables = (self.vocabulary + self.positions) * width
        return self.blocks.weights + vectors + tables + width * self.out


def vision_of(backbone: Any) -> Vision | None:
    """Return the shape of a backbone; None if it is no ViT of plain blocks: its operations are not counted here."""
    model = backbone.model
    blocks = getattr(model, "blocks", None)
    if blocks is None or not hasattr(blocks[0], "mlp") or not hasattr(blocks[0].mlp, "fc1"):
        return None
    hidden = blocks[0].mlp.fc1.out_features
    side = backbone.image_size // backbone.stride
    return Vision(Blocks(len(blocks), backbone.width, hidden), side**2, model.num_prefix_tokens, backbone.stride)


def text_of(encoder: Any) -> Text:
    """Return the shape of a scratch `TextEncoder`."""
    config = encoder.body.config
    blocks = Blocks(config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    return Text(blocks, config.vocab_size, config.max_position_embeddings, encoder.projection.out_features)


def blocks_forward(blocks: Blocks, sequences: int, length: int, item: int = TOWER) -> Work:
    """Count the forward pass of `sequences` of `length` tokens; reading the weights is not counted here."""
    tokens = sequences * length
    flops = 2 * tokens * blocks.weights + blocks.depth * 4 * tokens * length * blocks.width
    values = blocks.depth * tokens * (_FORWARD_WIDTHS * blocks.width + _FORWARD_HIDDEN * blocks.hidden)
    return Work(flops, item * values)


def blocks_backward(blocks: Blocks, sequences: int, length: int, item: int = TOWER) -> Work:
    """Count the gradients of the same for inputs and weights: each product becomes two."""
    tokens = sequences * length
    values = blocks.depth * tokens * (_BACKWARD_WIDTHS * blocks.width + _BACKWARD_HIDDEN * blocks.hidden)
    return Work(2 * blocks_forward(blocks, sequences, length).flops, item * values)


def vision_forward(vision: Vision, images: int, item: int = TOWER) -> Work:
    """Count the features of images: patch embedding, blocks, final norm; pixels are bytes, weights are read once."""
    width = vision.blocks.width
    pixels = 3 * vision.patch**2 * vision.patches
    embedding = Work(2 * images * pixels * width, images * (pixels + item * vision.tokens * width))
    norm = Work(0, item * images * 2 * vision.tokens * width)
    weights = Work(0, item * (vision.blocks.weights + 3 * vision.patch**2 * width))
    return embedding + blocks_forward(vision.blocks, images, vision.tokens, item) + norm + weights


def text_forward(text: Text, lengths: Iterable[tuple[int, int]], item: int = TOWER) -> Work:
    """Count (captions, tokens of each) to projected tokens; float32 weights are read once."""
    lengths = list(lengths)
    tokens = sum(captions * length for captions, length in lengths)
    width, out = text.blocks.width, text.out
    work = Work(0, FULL * (text.blocks.weights + width * out))
    for captions, length in lengths:
        work += blocks_forward(text.blocks, captions, length, item)
    # Two embeddings are read and their sum written; the norm at the end; the projection.
    ends = Work(2 * tokens * width * out, tokens * (2 * FULL * width + item * (width + 2 * width + width + out)))
    return work + ends


def text_backward(text: Text, lengths: Iterable[tuple[int, int]], item: int = TOWER) -> Work:
    """Count the gradients of the same; float32 weights are read again, the gradient of each parameter is written."""
    lengths = list(lengths)
    tokens = sum(captions * length for captions, length in lengths)
    width, out = text.blocks.width, text.out
    work = Work(0, FULL * (text.blocks.weights + width * out) + FULL * text.parameters)
    for captions, length in lengths:
        work += blocks_backward(text.blocks, captions, length, item)
    ends = Work(4 * tokens * width * out, tokens * item * (2 * (width + out) + 3 * width + width))
    return work + ends


def pooling(mentions: int, images: int, patches: int, width: int, item: int = TOWER) -> Work:
    """Count similarity pooling and its gradient: each mention meets the patches of its image twice, on both ways.

    Stored patches, of `item` bytes a value, are read once on each way.
    """
    flops = 8 * mentions * patches * width
    return Work(flops, 2 * item * images * patches * width + 5 * FULL * mentions * width)


def contrastive(images: int, texts: int, width: int) -> Work:
    """Count one table of logits for both directions, and its gradient for the texts alone: images do not learn."""
    return Work(4 * images * texts * width, FULL * width * (2 * images + 3 * texts))


def concepts(mentions: int, spans: int, present: int, width: int) -> Work:
    """Count prototypes out of `spans` token vectors, and the cross-entropy of mentions over `present` of them.

    A token is normalised (3 operations a value) and added; its gradient costs twice that.
    """
    products = 6 * mentions * present * width  # logits, and gradients for pooled patches and prototypes
    sums = 12 * spans * width
    return Work(products + sums, FULL * width * (3 * spans + 4 * mentions + 4 * present))


def adamw(parameters: int) -> Work:
    """Count one update of float32 parameters."""
    return Work(_ADAMW_OPERATIONS * parameters, _ADAMW_BYTES * parameters)


def gather(images: int, bytes_per_image: int) -> Work:
    """Count stored features of some images into a batch: read once, written once."""
    return Work(0, 2 * images * bytes_per_image)


def decode(images: int, file_bytes: float, pixels: int, side: int) -> Work:
    """Count JPEG files of `pixels` pixels to pictures of `side`, without the arithmetic of the decoder.

    The file is read, pixels are written and read, the picture is written.
    """
    return Work(0, images * (file_bytes + 2 * 3 * pixels + 3 * side**2))
