"""MobileSAM (Zhang et al. 2023) from `mobile_sam.pt`: a TinyViT in place of SAM's encoder, and SAM's decoder."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import LayerNorm2d
from timm.models.tiny_vit import ConvNorm
from torch import Tensor, nn
from transformers import SamConfig, SamModel

from simzss.errors import ModelError
from simzss.models.sam.sam1 import Sam1
from simzss.models.tensors import read_tensors

FRAME = 1024
"""Side of the frame in pixels that the published weights are for."""
PATCH = 16
_CHANNELS = 256

# Their names on the left, ours (timm's for the encoder, transformers' for the rest) on the right; applied in order.
_NAMES = [
    (r"^image_encoder\.patch_embed\.seq\.0\.", "vision_encoder.patch_embed.conv1."),
    (r"^image_encoder\.patch_embed\.seq\.2\.", "vision_encoder.patch_embed.conv2."),
    # What leads from one resolution to the next ends a stage of theirs and begins one of timm's.
    (r"^image_encoder\.layers\.0\.downsample\.", "vision_encoder.stages.1.downsample."),
    (r"^image_encoder\.layers\.1\.downsample\.", "vision_encoder.stages.2.downsample."),
    (r"^image_encoder\.layers\.2\.downsample\.", "vision_encoder.stages.3.downsample."),
    (r"^image_encoder\.layers\.", "vision_encoder.stages."),
    (r"^(vision_encoder\..*)\.c\.weight$", r"\1.conv.weight"),
    (r"^image_encoder\.neck\.", "vision_encoder.neck."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
     "prompt_encoder.shared_embedding.positional_embedding"),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"^mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.0\.", r"\1.proj_in."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.1\.", r"\1.layers.0."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.2\.", r"\1.proj_out."),
]  # fmt: skip
# A classifier over ImageNet that the authors left in the file, and tables that follow from the window sizes.
_UNUSED = re.compile(r"^image_encoder\.(norm_head|head)\.(weight|bias)$|\.attention_bias_idxs$")


class MobileEncoder(nn.Module):
    """TinyViT-5M without the stride of its last stage, and SAM's neck."""

    def __init__(self) -> None:
        super().__init__()
        body: Any = timm.create_model("tiny_vit_5m_224", pretrained=False)
        self.patch_embed = body.patch_embed
        self.stages = body.stages
        # The authors merge patches into the last stage without a stride, to give SAM its 16 pixels per cell.
        self.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(body.num_features, _CHANNELS, 1, bias=False),
            LayerNorm2d(_CHANNELS, eps=1e-6),
            nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False),
            LayerNorm2d(_CHANNELS, eps=1e-6),
        )

    def forward(self, frame: Tensor) -> tuple[Tensor]:
        """Encode frames (B, 3, H, W): a tuple of the embedding (B, 256, H / 16, W / 16)."""
        return (self.neck(self.stages(self.patch_embed(frame))),)

    def fold(self) -> None:
        """Fuse every batch normalisation into the convolution before it."""
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, ConvNorm):
                    setattr(module, name, child.fuse())


def load_mobile(file: Path) -> Sam1:
    """Load `mobile_sam.pt`.

    Raises:
        ModelError: unreadable, code in it, or a tensor that is missing, unexpected or of another shape.
    """
    return mobile_sam(str(file), read_tensors(file))


def mobile_sam(name: str, weights: Mapping[str, Tensor], frame: int = FRAME) -> Sam1:
    """Build MobileSAM from weights by their official names, for images of `frame` pixels, a multiple of 16.

    Raises:
        ModelError: a tensor that is missing, unexpected or of another shape.
    """
    model = untrained(frame)
    _fill(model, name, weights)
    sam = Sam1(name, model)
    model.vision_encoder.fold()
    model.vision_encoder.to(memory_format=torch.channels_last).requires_grad_(False).eval()
    return sam


def untrained(frame: int = FRAME) -> Any:
    """Build a `SamModel` for `frame` pixels with a `MobileEncoder` in place of its ViT, weights random."""
    # The ViT is replaced at once, so it has no layers. The authors' transformer has PyTorch's epsilon in its norms,
    # where transformers' default has another.
    vision = {"num_hidden_layers": 0, "hidden_size": 16, "num_attention_heads": 1, "global_attn_indexes": []}
    config: Any = SamConfig(
        vision_config=vision | {"image_size": frame},
        prompt_encoder_config={"image_size": frame, "patch_size": PATCH},
        mask_decoder_config={"layer_norm_eps": 1e-5},
    )
    config._attn_implementation = "sdpa"
    model: Any = SamModel(config)
    model.vision_encoder = MobileEncoder()
    return model


def _fill(model: Any, name: str, weights: Mapping[str, Tensor]) -> None:
    """Load every tensor of the file except those known to be unused; reject missing, unexpected and misshapen ones."""
    ours = {_ours(key): key for key in weights if not _UNUSED.search(key)}
    state = {key: weights[official].to(torch.float32) for key, official in ours.items()}
    # One matrix serves both for prompts and for the cells of the image.
    shared = "shared_embedding.positional_embedding"
    if f"prompt_encoder.{shared}" in state:
        state["shared_image_embedding.positional_embedding"] = state[f"prompt_encoder.{shared}"]
    expected = model.state_dict()
    for key in sorted(expected.keys() - state.keys()):
        raise ModelError(f"{name} is no file of MobileSAM's weights: it lacks what is {key} here")
    for key in sorted(state.keys() - expected.keys()):
        raise ModelError(f"{name} is no file of MobileSAM's weights: its tensor {ours.get(key, key)} is unknown")
    for key, value in expected.items():
        if value.shape != state[key].shape:
            raise ModelError(f"{name} is no file of MobileSAM's weights: {ours[key]} is of shape "
                             f"{tuple(state[key].shape)}, not {tuple(value.shape)}")  # fmt: skip
    model.load_state_dict(state)


def _ours(key: str) -> str:
    for pattern, replacement in _NAMES:
        key = re.sub(pattern, replacement, key)
    return key
