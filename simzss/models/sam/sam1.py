"""SAM (Kirillov et al. 2023): transformers' `SamModel`, with its ViT or another encoder (MobileSAM)."""

import math
from typing import Any

from torch import Tensor

from simzss.models.sam.sam import LastAttention, Sam, SamEncoding, SamResize


class Sam1(Sam):
    """A `SamModel`; its last global attention is recomputed from its own weights, without hooks.

    Args:
        name: for messages.
        model: the `SamModel`, or one with an encoder of another kind.
    """

    def __init__(self, name: str, model: Any) -> None:
        resizer = SamResize(int(model.config.prompt_encoder_config.image_size))
        super().__init__(name, model, resizer, has_attention=_last_global(model.vision_encoder) is not None)

    def _encode(
        self, frame: Tensor, image: tuple[int, int], attention: bool
    ) -> tuple[Tensor, tuple[Tensor, ...], LastAttention | None]:
        encoder = self.model.vision_encoder
        last = _last_global(encoder) if attention else None
        if last is None:
            return encoder(frame)[0], (), None
        cells = encoder.patch_embed(frame)
        if encoder.pos_embed is not None:
            cells = cells + encoder.pos_embed
        kept = None
        for layer in encoder.layers:
            if layer is last:
                patch = self.size / cells.shape[1]
                kept = _attention(layer, cells, (math.ceil(image[0] / patch), math.ceil(image[1] / patch)))
            cells = layer(cells)
        return encoder.neck(cells), (), kept

    def _decode(
        self, encoding: SamEncoding, prompts: dict[str, Tensor | None], count: int, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        sparse, dense = self.model.prompt_encoder(**prompts)
        kind = encoding._frame.dtype
        logits, iou = self.model.mask_decoder(
            image_embeddings=encoding._frame.expand(count, -1, -1, -1),
            image_positional_embeddings=self.positions.to(kind),
            sparse_prompt_embeddings=None if sparse is None else sparse.to(kind),
            dense_prompt_embeddings=dense.to(kind),
            multimask_output=multimask,
        )
        return logits, iou


def _last_global(encoder: Any) -> Any:
    """Return the last layer whose attention spans the whole frame, or None."""
    layers = [layer for layer in getattr(encoder, "layers", ()) if layer.window_size == 0]
    return layers[-1] if layers else None


def _attention(layer: Any, cells: Tensor, grid: tuple[int, int]) -> LastAttention:
    """Recompute the attention of a layer from its input (1, H, W, C), for the cells of `grid` in the upper left."""
    attention, frame = layer.attn, (int(cells.shape[1]), int(cells.shape[2]))
    heads = attention.num_attention_heads
    projected = attention.qkv(layer.layer_norm1(cells))[0].unflatten(-1, (3, heads, -1))
    queries, keys, values = projected.permute(2, 3, 0, 1, 4).unbind(0)  # (heads, H, W, d) each

    def visible(tokens: Tensor) -> Tensor:
        return tokens[:, : grid[0], : grid[1]].flatten(1, 2)

    down = across = None
    if attention.use_rel_pos:
        down = attention.get_rel_pos(frame[0], frame[0], attention.rel_pos_h)[: grid[0]]
        across = attention.get_rel_pos(frame[1], frame[1], attention.rel_pos_w)[: grid[1]]
    return LastAttention(grid, visible(values).float(), visible(queries), keys.flatten(1, 2), frame, down, across)
