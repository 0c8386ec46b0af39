"""Segment Anything models of a few thousand weights, and MobileSAM's weights by their official names."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Sam2Config, Sam2Model, SamConfig, SamModel

from tests.support.models import shaken

SIDE, PATCH = 64, 8
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
STAGES = [(64, 2, 0, 0), (128, 2, 4, 7), (160, 6, 5, 14), (320, 2, 10, 7)]
"""Channels, blocks, heads and window side of every stage of MobileSAM's encoder."""


def image(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def framed(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Pixels (3, h, w) as numbers in the corner of a frame of zeros (1, 3, side, side), float64, pixel by pixel."""
    frame = torch.zeros(1, 3, side, side, dtype=torch.float64)
    for channel in range(3):
        values = (pixels[channel].double() - MEAN[channel]) / STD[channel]
        frame[0, channel, : pixels.shape[1], : pixels.shape[2]] = values
    return frame


def save_first(folder: Path, seed: int = 0, **vision: Any) -> Path:
    """A folder of transformers' with a SAM of three layers, of which the middle one is global."""
    torch.manual_seed(seed)
    options = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_dim": 48, "image_size": SIDE,
               "patch_size": PATCH, "window_size": 3, "global_attn_indexes": [1], "output_channels": 32,
               "num_pos_feats": 16, "initializer_range": 0.05}  # fmt: skip
    config = SamConfig(
        vision_config=options | vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE, "patch_size": PATCH},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 4, "mlp_dim": 48, "iou_head_hidden_dim": 24},
    )
    shaken(SamModel(config), seed).save_pretrained(folder)
    return folder


def second_config(**changes: Any) -> Sam2Config:
    """Of a SAM 2 for images of 128 pixels and an embedding of 8 x 8 cells."""
    hiera = {"model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [128, 128],
             "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
             "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 2, 4, 2],
             "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4]}  # fmt: skip
    vision = {"backbone_config": hiera, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 32,
              "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}  # fmt: skip
    return Sam2Config(
        vision_config=vision | changes,
        prompt_encoder_config={"hidden_size": 32, "image_size": 128, "patch_size": 16},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 4, "mlp_dim": 48, "iou_head_hidden_dim": 24},
    )


def save_second(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A folder of transformers' with the SAM 2 of `second_config`."""
    torch.manual_seed(seed)
    shaken(Sam2Model(second_config(**changes)), seed).save_pretrained(folder)
    return folder


def mobile_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the official `mobile_sam.pt` by name."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    def normed(name: str, *weight: int) -> None:
        layer(f"{name}.c", *weight, bias=False)
        layer(f"{name}.bn", weight[0])
        shapes[f"{name}.bn.running_mean"] = shapes[f"{name}.bn.running_var"] = weight[:1]
        shapes[f"{name}.bn.num_batches_tracked"] = ()

    def normed_all(name: str, *convolutions: tuple[int, ...]) -> None:
        for number, weight in enumerate(convolutions, 1):
            normed(f"{name}.conv{number}", *weight)

    encoder = "image_encoder"
    normed(f"{encoder}.patch_embed.seq.0", 32, 3, 3, 3)
    normed(f"{encoder}.patch_embed.seq.2", 64, 32, 3, 3)
    for stage, (width, blocks, heads, window) in enumerate(STAGES):
        for block in range(blocks):
            name = f"{encoder}.layers.{stage}.blocks.{block}"
            if not heads:
                normed_all(name, (4 * width, width, 1, 1), (4 * width, 1, 3, 3), (width, 4 * width, 1, 1))
                continue
            shapes[f"{name}.attn.attention_biases"] = (heads, window * window)
            layer(f"{name}.attn.norm", width)
            layer(f"{name}.attn.qkv", 3 * width, width)
            layer(f"{name}.attn.proj", width, width)
            layer(f"{name}.mlp.norm", width)
            layer(f"{name}.mlp.fc1", 4 * width, width)
            layer(f"{name}.mlp.fc2", width, 4 * width)
            normed(f"{name}.local_conv", width, 1, 3, 3)
        if stage < 3:
            out = STAGES[stage + 1][0]
            name = f"{encoder}.layers.{stage}.downsample"
            normed_all(name, (out, width, 1, 1), (out, 1, 3, 3), (out, out, 1, 1))
    layer(f"{encoder}.norm_head", 320)
    layer(f"{encoder}.head", 1000, 320)
    layer(f"{encoder}.neck.0", 256, 320, 1, 1, bias=False)
    layer(f"{encoder}.neck.1", 256)
    layer(f"{encoder}.neck.2", 256, 256, 3, 3, bias=False)
    layer(f"{encoder}.neck.3", 256)

    prompts = "prompt_encoder"
    shapes[f"{prompts}.pe_layer.positional_encoding_gaussian_matrix"] = (2, 128)
    for name in (*(f"point_embeddings.{kind}" for kind in range(4)), "not_a_point_embed", "no_mask_embed"):
        shapes[f"{prompts}.{name}.weight"] = (1, 256)
    layer(f"{prompts}.mask_downscaling.0", 4, 1, 2, 2)
    layer(f"{prompts}.mask_downscaling.1", 4)
    layer(f"{prompts}.mask_downscaling.3", 16, 4, 2, 2)
    layer(f"{prompts}.mask_downscaling.4", 16)
    layer(f"{prompts}.mask_downscaling.6", 256, 16, 1, 1)

    decoder = "mask_decoder"

    def attention(name: str, inner: int) -> None:
        for part in ("q_proj", "k_proj", "v_proj"):
            layer(f"{name}.{part}", inner, 256)
        layer(f"{name}.out_proj", 256, inner)

    for number in range(2):
        name = f"{decoder}.transformer.layers.{number}"
        attention(f"{name}.self_attn", 256)
        attention(f"{name}.cross_attn_token_to_image", 128)
        attention(f"{name}.cross_attn_image_to_token", 128)
        layer(f"{name}.mlp.lin1", 2048, 256)
        layer(f"{name}.mlp.lin2", 256, 2048)
        for norm in range(1, 5):
            layer(f"{name}.norm{norm}", 256)
    attention(f"{decoder}.transformer.final_attn_token_to_image", 128)
    layer(f"{decoder}.transformer.norm_final_attn", 256)
    shapes |= {f"{decoder}.iou_token.weight": (1, 256), f"{decoder}.mask_tokens.weight": (4, 256)}
    for name, (into, out) in {"0": (256, 64), "3": (64, 32)}.items():
        shapes[f"{decoder}.output_upscaling.{name}.weight"] = (into, out, 2, 2)
        shapes[f"{decoder}.output_upscaling.{name}.bias"] = (out,)
    layer(f"{decoder}.output_upscaling.1", 64)
    for name, out in {**{f"output_hypernetworks_mlps.{i}": 32 for i in range(4)}, "iou_prediction_head": 4}.items():
        for number, width in enumerate((256, 256, out)):
            layer(f"{decoder}.{name}.layers.{number}", width, 256)
    return shapes


@cache
def mobile_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of MobileSAM by their official names; copy before you change them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in mobile_shapes().items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            weights[name] = 0.5 + noise.abs()
        elif len(shape) > 1 and "embed" not in name and "token" not in name and "gaussian" not in name:
            weights[name] = noise / np.sqrt(np.prod(shape[1:]))
        elif len(shape) == 1 and name.endswith("weight"):
            weights[name] = 1 + 0.3 * noise
        else:
            weights[name] = 0.5 * noise
    return weights
