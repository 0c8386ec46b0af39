"""Memory of a training step by calculation, and the micro-batch that fits."""

import torch

from benchmarks.floors import FULL, TOWER, Text
from simzss.features.placement import free_host_memory

TOKENS = 14
"""Of a caption with its block's padding: COCO's captions have 13.6 on average, CLIP's start and end among them."""
BLOCK_WIDTHS = 18
"""Values that each block of the text tower keeps of a token for its gradient, in widths: the input of both norms in
float32 (4), of three products (3), queries, keys and values (3), the hidden layer twice (8)."""
VOCABULARY = 49_408  # of CLIP's tokenizer
POOLED = 1024
"""Images that similarity pooling takes at a time (`simzss.models.pooling`)."""
SPARE = 0.9
"""Share of the memory that is counted on."""


def choose_micro_batch(memory: int, features: int, batch: int, image_bytes: int, text: Text) -> int | None:
    """Return the captions that may go through the text tower at a time; None where all of the batch fit.

    With a micro-batch the tower's activations are computed twice, of one micro-batch at a time. Beside them there are
    the features of the batch, patches in float32 while some images are pooled, token vectors in float32 with their unit
    vectors and gradients, and the parameters with gradients and averages.

    Args:
        memory: bytes of the device.
        features: bytes of them that features of the whole set take.
        batch: captions of a step.
        image_bytes: features of one image.
        text: shape of the tower.
    """
    tokens = TOKENS * batch
    pooled = 3 * 2 * min(batch, POOLED) * image_bytes
    whole = batch * image_bytes + pooled + 3 * FULL * tokens * text.out + 4 * FULL * text.parameters
    room = SPARE * memory - features - whole
    caption = TOKENS * TOWER * BLOCK_WIDTHS * text.blocks.depth * text.blocks.width
    if batch * caption <= room:
        return None
    # A power of two of which two fit: the gradient of one comes while the next is computed again.
    fitting = max(1, int(room / (2 * caption)))
    return max(64, 1 << (fitting.bit_length() - 1))


def device_memory(device: torch.device) -> int:
    """Return the bytes of a device's memory; without an accelerator, or where it does not say, the free host memory."""
    module = None if device.type == "cpu" else torch.get_device_module(device)
    if module is not None and hasattr(module, "mem_get_info"):
        return int(module.mem_get_info(device)[1])
    return free_host_memory()
