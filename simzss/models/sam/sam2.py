"""SAM 2 (Ravi et al. 2024) on single images: transformers' `Sam2Model`."""

from typing import Any

import torch
from torch import Tensor

from simzss.models.sam.sam import LastAttention, Sam, SamEncoding, SamResize


class Sam2(Sam):
    """A `Sam2Model`.

    Args:
        name: for messages.
        model: the `Sam2Model`.
    """

    def __init__(self, name: str, model: Any) -> None:
        # Its encoder attends within windows for the most part, and to pooled queries: no attention over the cells.
        resizer = SamResize(int(model.config.prompt_encoder_config.image_size), square=True)
        super().__init__(name, model, resizer, has_attention=False)

    def use_precision(self, precision: str) -> "Sam2":
        """Convert the weights as `Sam` does, and the embedding that stands for the memory of a video."""
        super().use_precision(precision)
        self.model.no_memory_embedding.data = self.model.no_memory_embedding.data.to(self._dtype)
        return self

    def _encode(
        self, frame: Tensor, image: tuple[int, int], attention: bool
    ) -> tuple[Tensor, tuple[Tensor, ...], LastAttention | None]:
        *fine, embedding = self.model.get_image_embeddings(frame)
        return embedding, tuple(fine), None

    def _decode(
        self, encoding: SamEncoding, prompts: dict[str, Tensor | None], count: int, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        if prompts["input_points"] is None and prompts["input_boxes"] is None:
            # The decoder wants at least one token of a prompt; -1 says that this one is no point.
            prompts["input_points"] = self.mean.new_zeros(count, 1, 1, 2)
            prompts["input_labels"] = torch.full((count, 1, 1), -1, device=self.mean.device)
        sparse, dense = self.model.prompt_encoder(**prompts)
        kind = encoding._frame.dtype
        logits, iou, _, _ = self.model.mask_decoder(
            image_embeddings=encoding._frame.expand(count, -1, -1, -1),
            image_positional_embeddings=self.positions.to(kind),
            sparse_prompt_embeddings=sparse.to(kind),
            dense_prompt_embeddings=dense.to(kind),
            multimask_output=multimask,
            high_resolution_features=list(encoding._fine),
        )
        return logits, iou
