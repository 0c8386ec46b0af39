"""MobileSAM in float64 from its official weights by name: plain functions, windows and cells by loops."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from tests.unit.models.sam.tiny import STAGES

Weights = Mapping[str, torch.Tensor]
Tensor = torch.Tensor


class Official:
    """The model on a frame of `side` pixels."""

    def __init__(self, weights: Weights, side: int) -> None:
        self.weights = {name: value.double() for name, value in weights.items()}
        self.side = side

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        """Over the last axis."""
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def norm_map(self, name: str, x: Tensor) -> Tensor:
        """Over the channels of a map."""
        return self.norm(name, x.movedim(1, -1), 1e-6).movedim(-1, 1)

    def mlp(self, name: str, x: Tensor, layers: int = 3) -> Tensor:
        for number in range(layers):
            x = self.linear(f"{name}.layers.{number}", x)
            x = x.clamp(min=0) if number < layers - 1 else x
        return x

    # The encoder ----------------------------------------------------------------------------------------------------

    def convolve(self, name: str, x: Tensor, stride: int = 1, alone: bool = False) -> Tensor:
        weight = self.weights[f"{name}.c.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=len(weight) if alone else 1)
        part = {key: self.weights[f"{name}.bn.{key}"][:, None, None]
                for key in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
        return (x - part["running_mean"]) / (part["running_var"] + 1e-5).sqrt() * part["weight"] + part["bias"]

    def embedding(self, frame: Tensor) -> Tensor:
        x = F.gelu(self.convolve("image_encoder.patch_embed.seq.0", frame, 2))
        x = self.convolve("image_encoder.patch_embed.seq.2", x, 2)
        for stage, (_, blocks, heads, window) in enumerate(STAGES):
            for block in range(blocks):
                name = f"image_encoder.layers.{stage}.blocks.{block}"
                x = self.transformed(name, x, heads, window) if heads else self.inverted(name, x)
            if stage < 3:
                name = f"image_encoder.layers.{stage}.downsample"
                x = F.gelu(self.convolve(f"{name}.conv1", x))
                x = F.gelu(self.convolve(f"{name}.conv2", x, 1 if stage == 2 else 2, alone=True))
                x = self.convolve(f"{name}.conv3", x)
        x = F.conv2d(x, self.weights["image_encoder.neck.0.weight"])
        x = self.norm_map("image_encoder.neck.1", x)
        x = F.conv2d(x, self.weights["image_encoder.neck.2.weight"], padding=1)
        return self.norm_map("image_encoder.neck.3", x)

    def inverted(self, name: str, x: Tensor) -> Tensor:
        inner = F.gelu(self.convolve(f"{name}.conv1", x))
        inner = F.gelu(self.convolve(f"{name}.conv2", inner, alone=True))
        return F.gelu(self.convolve(f"{name}.conv3", inner) + x)

    def transformed(self, name: str, x: Tensor, heads: int, window: int) -> Tensor:
        cells = x[0].permute(1, 2, 0)
        height, width, channels = cells.shape
        attended = torch.zeros_like(cells)
        for top in range(0, height, window):
            for left in range(0, width, window):
                # Cells of a window beyond the map are zeros and take part like any other.
                square = torch.zeros(window, window, channels, dtype=torch.float64)
                inside = cells[top : top + window, left : left + window]
                square[: inside.shape[0], : inside.shape[1]] = inside
                result = self.window(f"{name}.attn", square.reshape(-1, channels), heads, window)
                result = result.reshape(window, window, channels)[: inside.shape[0], : inside.shape[1]]
                attended[top : top + window, left : left + window] = result
        cells = (cells + attended).permute(2, 0, 1)[None]
        cells = self.convolve(f"{name}.local_conv", cells, alone=True)[0].permute(1, 2, 0)
        inner = F.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.mlp.norm", cells, 1e-5)))
        return (cells + self.linear(f"{name}.mlp.fc2", inner)).permute(2, 0, 1)[None]

    def window(self, name: str, tokens: Tensor, heads: int, window: int) -> Tensor:
        biases = self.weights[f"{name}.attention_biases"]
        mixed = self.linear(f"{name}.qkv", self.norm(f"{name}.norm", tokens, 1e-5))
        width = tokens.shape[1] // heads
        place = torch.arange(window * window)
        row, column = place // window, place % window
        apart = (row[:, None] - row).abs() * window + (column[:, None] - column).abs()
        results = []
        for head in range(heads):
            query, key, value = mixed[:, 3 * width * head : 3 * width * (head + 1)].split(width, dim=1)
            logits = query @ key.T / math.sqrt(width) + biases[head][apart]
            results.append(logits.softmax(1) @ value)
        return self.linear(f"{name}.proj", torch.cat(results, dim=1))

    # Prompts --------------------------------------------------------------------------------------------------------

    def place(self, x: float, y: float) -> Tensor:
        """Code (256,) of a place whose coordinates are shares of the frame."""
        matrix = self.weights["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
        angle = 2 * math.pi * ((2 * x - 1) * matrix[0] + (2 * y - 1) * matrix[1])
        return torch.cat([angle.sin(), angle.cos()])

    def kind(self, name: str) -> Tensor:
        return self.weights[f"prompt_encoder.{name}.weight"][0]

    def tokens(self, points: list[tuple[float, float, int]], box: tuple[float, ...] | None) -> Tensor:
        """Tokens of one prompt; coordinates are shares of the frame."""
        found = [self.place(x, y) + self.kind(f"point_embeddings.{label}") for x, y, label in points]
        if box is None and points:
            found.append(self.kind("not_a_point_embed"))
        if box is not None:
            found.append(self.place(*box[:2]) + self.kind("point_embeddings.2"))
            found.append(self.place(*box[2:]) + self.kind("point_embeddings.3"))
        return torch.stack(found) if found else torch.zeros(0, 256, dtype=torch.float64)

    def dense(self, mask: Tensor | None) -> Tensor:
        """(256, h, w) of a mask prompt (4 h, 4 w) of the frame."""
        cells = self.side // 16
        if mask is None:
            return self.kind("no_mask_embed")[:, None, None].expand(256, cells, cells)
        x = mask.double()[None, None]
        for convolution, norm in ((0, 1), (3, 4)):
            name = f"prompt_encoder.mask_downscaling.{convolution}"
            x = F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride=2)
            x = F.gelu(self.norm_map(f"prompt_encoder.mask_downscaling.{norm}", x))
        name = "prompt_encoder.mask_downscaling.6"
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])[0]

    # The mask decoder -----------------------------------------------------------------------------------------------

    def attend(self, name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (
            self.linear(f"{name}.{part}_proj", x) for part, x in (("q", query), ("k", key), ("v", value))
        )
        width = query.shape[1] // 8
        heads = [slice(width * head, width * (head + 1)) for head in range(8)]
        mixed = [(query[:, h] @ key[:, h].T / math.sqrt(width)).softmax(1) @ value[:, h] for h in heads]
        return self.linear(f"{name}.out_proj", torch.cat(mixed, dim=1))

    def masks(self, embedding: Tensor, tokens: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (4, 4 h, 4 w) and expected IoU (4,) of one prompt: the single mask first, then the three."""
        cells = self.side // 16
        own = [self.weights[f"mask_decoder.{name}.weight"] for name in ("iou_token", "mask_tokens")]
        places = torch.cat([*own, tokens])
        grid = torch.stack([self.place((x + 0.5) / cells, (y + 0.5) / cells)
                            for y in range(cells) for x in range(cells)])  # fmt: skip
        queries, image = places, (embedding[0] + dense).flatten(1).T
        for number in range(2):
            name = f"mask_decoder.transformer.layers.{number}"
            if number == 0:
                queries = self.attend(f"{name}.self_attn", queries, queries, queries)
            else:
                with_places = queries + places
                queries = queries + self.attend(f"{name}.self_attn", with_places, with_places, queries)
            queries = self.norm(f"{name}.norm1", queries, 1e-5)
            queries = queries + self.attend(f"{name}.cross_attn_token_to_image", queries + places, image + grid, image)
            queries = self.norm(f"{name}.norm2", queries, 1e-5)
            inner = self.linear(f"{name}.mlp.lin1", queries).clamp(min=0)
            queries = self.norm(f"{name}.norm3", queries + self.linear(f"{name}.mlp.lin2", inner), 1e-5)
            image = image + self.attend(f"{name}.cross_attn_image_to_token", image + grid, queries + places, queries)
            image = self.norm(f"{name}.norm4", image, 1e-5)
        name = "mask_decoder.transformer.final_attn_token_to_image"
        queries = queries + self.attend(name, queries + places, image + grid, image)
        queries = self.norm("mask_decoder.transformer.norm_final_attn", queries, 1e-5)
        fine = image.T.reshape(1, 256, cells, cells)
        for number in (0, 3):
            name = f"mask_decoder.output_upscaling.{number}"
            fine = F.conv_transpose2d(fine, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride=2)
            fine = F.gelu(self.norm_map("mask_decoder.output_upscaling.1", fine) if number == 0 else fine)
        filters = [self.mlp(f"mask_decoder.output_hypernetworks_mlps.{i}", queries[1 + i]) for i in range(4)]
        logits = torch.einsum("mc,chw->mhw", torch.stack(filters), fine[0])
        return logits, self.mlp("mask_decoder.iou_prediction_head", queries[0])
