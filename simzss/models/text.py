"""Text encoders: SimZSS's CLIP-shaped tower from scratch, or a pretrained transformers directory; one interface."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, AutoModel, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from simzss.errors import InputError, nearest
from simzss.models.features import TextFeatures
from simzss.models.tokenizer import clip_tokenizer, directory_tokenizer

KINDS = ("scratch", "pretrained")
POOLINGS = ("eot", "mean")


class TextEncoder(nn.Module):
    """A transformer over tokens and a linear map into the backbone's space.

    Args:
        body: transformers model with `last_hidden_state`.
        tokenizer: a fast tokenizer for it.
        pooling: sentence vector from the last token (`eot`, for causal bodies) or the mean over tokens (`mean`).
        embed_dim: D, width of the backbone.
        context_length: most tokens of a text, special tokens included.
    """

    def __init__(
        self, body: Any, tokenizer: PreTrainedTokenizerBase, pooling: str, embed_dim: int, context_length: int
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"pooling={pooling} of the text encoder is unknown; {nearest(pooling, POOLINGS)}")
        self.body = body
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.context_length = context_length
        self.projection = nn.Linear(body.config.hidden_size, embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=body.config.hidden_size**-0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> TextFeatures:
        """Encode (B, L) token ids with their (B, L) mask, ones first; neither output is normalised.

        Tokens of padding have no meaning.
        """
        # A token of a causal body sees none after it, and so no padding: without a mask attention takes its fast path,
        # and transformers need not look at the mask's values, for which a GPU would have to be waited for.
        seen = None if self.pooling == "eot" else attention_mask
        with _attention_for(input_ids.device):
            hidden = self.body(input_ids=input_ids, attention_mask=seen).last_hidden_state
        tokens = self.projection(hidden)
        if self.pooling == "eot":
            last = attention_mask.sum(dim=1) - 1
            pooled = tokens[torch.arange(len(tokens), device=tokens.device), last]
        else:
            weight = attention_mask.to(tokens.dtype)[..., None]
            pooled = (tokens * weight).sum(dim=1) / weight.sum(dim=1)
        return TextFeatures(pooled, tokens)

    def train(self, mode: bool = True) -> "TextEncoder":
        """Training mode for the parts that learn; frozen layers keep their dropout off."""
        super().train(mode)
        for module in self.body.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self

    def compile_body(self, **options: Any) -> None:
        """Let torch compile the transformer for all shapes at once: blocks of captions have others in every batch.

        Args:
            options: of `torch.compile`, such as its backend.
        """
        self.body.compile(dynamic=True, **options)

    def tokenize(self, texts: Sequence[str]) -> Any:
        """Token ids, masks and character offsets of `texts` as lists, truncated to the context length."""
        return self.tokenizer(list(texts), truncation=True, max_length=self.context_length, return_offsets_mapping=True)

    @property
    def architecture(self) -> dict[str, Any]:
        """All that is needed beside weights and tokenizer to rebuild this encoder, as plain JSON values."""
        config = self.body.config.to_dict()
        config["model_type"] = self.body.config.model_type
        return {"body": config, "pooling": self.pooling, "context_length": self.context_length}


def build_text_encoder(kind: str, embed_dim: int, **options: Any) -> TextEncoder:
    """Build the encoder that `conf/text/*.yaml` describes: `kind` and its options.

    Raises:
        InputError: unknown kind, a directory that is no transformers model, more layers than there are.
    """
    if kind == "scratch":
        return _scratch(embed_dim, **options)
    if kind == "pretrained":
        return _pretrained(embed_dim, **options)
    raise InputError(f"text.kind={kind} is unknown; {nearest(kind, KINDS)}")


def rebuild_text_encoder(architecture: dict[str, Any], embed_dim: int, tokenizer_dir: Path | None) -> TextEncoder:
    """The encoder of a saved model, weights still untrained; `tokenizer_dir` None means CLIP's tokenizer."""
    config = dict(architecture["body"])
    body = _from_config(_without_kernel(AutoConfig.for_model(config.pop("model_type"), **config)))
    tokenizer = clip_tokenizer() if tokenizer_dir is None else directory_tokenizer(tokenizer_dir)
    return TextEncoder(body, tokenizer, architecture["pooling"], embed_dim, int(architecture["context_length"]))


def _scratch(embed_dim: int, layers: int, width: int, heads: int, context_length: int) -> TextEncoder:
    if heads < 1 or width % heads:
        raise InputError(f"text.heads={heads} does not divide text.width={width}")
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context_length,
        hidden_act="gelu",
        projection_dim=embed_dim,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return TextEncoder(CLIPTextModel(config), tokenizer, "eot", embed_dim, context_length)


def _pretrained(embed_dim: int, weights: str, trainable_layers: int | str, context_length: int) -> TextEncoder:
    path = Path(weights)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if not path.exists() and path.parent != Path() and len(path.parts) != 2:
        raise InputError(f"text.weights={weights} does not exist")
    try:
        # A path is read from disk, `owner/name` from the hub; remote code is never run, pickles are never read.
        body, loading = AutoModel.from_pretrained(
            weights,
            config=_without_kernel(AutoConfig.from_pretrained(weights, trust_remote_code=False)),
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        # transformers, safetensors and the hub client each have their own types for a broken or missing model.
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"text.weights={weights} is no transformers text model: {reason}") from error
    lacking = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if lacking:
        raise InputError(f"text.weights={weights} lacks {', '.join(lacking[:3])} ({len(lacking)} tensors)")
    if not isinstance(getattr(body.config, "hidden_size", None), int):
        raise InputError(f"text.weights={weights} is a {body.config.model_type} model, not a text encoder")
    limit = _positions(body, default=context_length)
    if context_length > limit:
        raise InputError(f"text.context_length={context_length} is more than the {limit} positions of {weights}")
    encoder = TextEncoder(body, directory_tokenizer(path), "mean", embed_dim, context_length)
    _freeze_all_but_last(body, trainable_layers)
    return encoder


def _attention_for(device: torch.device) -> AbstractContextManager[None]:
    """Plain products for attention on a CPU: its fused kernel takes a third of a step for the gradients of captions."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _positions(body: Any, default: int) -> int:
    """Most tokens that the positions serve. RoBERTa and its kin count from the padding index on: fewer than there are
    rows."""  # fmt: skip
    rows = int(getattr(body.config, "max_position_embeddings", default))
    table = getattr(getattr(body, "embeddings", None), "position_embeddings", None)
    reserved = getattr(table, "padding_idx", None)
    return rows if reserved is None else rows - reserved - 1


def _freeze_all_but_last(body: nn.Module, trainable_layers: int | str) -> None:
    """Freeze all of `body` but its last layers (and, for `all`, nothing but parts that the output never uses)."""
    pooler = getattr(body, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)  # not on the path to any loss: DDP would wait for its gradient
    if trainable_layers == "all":
        return
    layers = max((m for m in body.modules() if isinstance(m, nn.ModuleList)), key=len, default=nn.ModuleList())
    if not isinstance(trainable_layers, int) or not 0 <= trainable_layers <= len(layers):
        raise InputError(f"text.trainable_layers={trainable_layers} must be all or 0 to {len(layers)}")
    body.requires_grad_(False)
    for layer in list(layers)[len(layers) - trainable_layers :]:
        layer.requires_grad_(True)


def _without_kernel(config: Any) -> Any:
    """Leave the choice of attention to transformers: the name of another one may be code to fetch from the hub."""
    config._attn_implementation = None
    return config


def _from_config(config: Any) -> nn.Module:
    return CLIPTextModel(config) if isinstance(config, CLIPTextConfig) else AutoModel.from_config(config)
