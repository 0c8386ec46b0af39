"""Text encoders: SimZSS's CLIP-shaped tower from scratch, or a pretrained transformers model."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerBase,
)

from simzss.concepts.align import token_span
from simzss.errors import ConfigError, ModelError, nearest
from simzss.models.features import TextFeatures
from simzss.models.pooling import token_sums
from simzss.models.pretrained import fetch, load_pretrained, read_pretrained_config, without_kernel
from simzss.models.settings import PretrainedText, ScratchText
from simzss.models.tokenizer import clip_tokenizer, directory_tokenizer

POOLINGS = ("eot", "mean")


class TextEncoder(nn.Module):
    """A transformer over tokens and a linear map into the backbone's space.

    Args:
        body: transformers model with `last_hidden_state`.
        tokenizer: a fast tokenizer for it.
        pooling: sentence vector from the last token (`eot`, for causal bodies) or the mean over tokens (`mean`).
        embed_dim: D, width of the backbone.
        context_length: maximum number of tokens, special tokens included.
    """

    def __init__(
        self, body: Any, tokenizer: PreTrainedTokenizerBase, pooling: str, embed_dim: int, context_length: int
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ModelError(f"pooling={pooling} of the text encoder is unknown; {nearest(pooling, POOLINGS)}")
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
        mask = None if self.pooling == "eot" else attention_mask
        with _attention_for(input_ids.device):
            hidden = self.body(input_ids=input_ids, attention_mask=mask).last_hidden_state
        tokens = self.projection(hidden)
        if self.pooling == "eot":
            last = attention_mask.sum(dim=1) - 1
            pooled = tokens[torch.arange(len(tokens), device=tokens.device), last]
        else:
            weight = attention_mask.to(tokens.dtype)[..., None]
            pooled = (tokens * weight).sum(dim=1) / weight.sum(dim=1)
        return TextFeatures(pooled, tokens)

    @torch.no_grad()
    def encode(
        self, texts: Sequence[str], spans: Sequence[tuple[int, int]] | None = None, batch_size: int = 256
    ) -> tuple[Tensor, Tensor | None]:
        """Encode texts in batches, outside training.

        Args:
            texts: T texts, truncated to the context length.
            spans: one range of characters for each text, such as a class name inside a prompt.
            batch_size: texts at a time.

        Returns:
            Sentence vectors (T, D), not normalised; for each span the sum of its tokens' L2-normalised vectors (T, D),
            None without spans. Both float32, on the device of the weights.

        Raises:
            ConfigError: a span without a token inside the context length.
        """
        weight = self.projection.weight
        pooled, sums = [torch.empty(0, len(weight), device=weight.device)], []
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            tokens = self.tokenize(part)
            ranges = None
            if spans is not None:
                entries = zip(part, tokens["offset_mapping"], spans[start : start + batch_size], strict=True)
                ranges = [self._tokens_of(*entry) for entry in entries]
            found = self(*self._padded(tokens["input_ids"]))
            pooled.append(found.pooled.float())
            if ranges is not None:
                sums.append(_span_sums(found.tokens.float(), ranges))
        return torch.cat(pooled), None if spans is None else torch.cat(sums or pooled)

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Return token ids (B, L) and their mask, padded on the right."""
        device = self.projection.weight.device
        padded = self.tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(padded["input_ids"].shape[1]) < lengths[:, None]).long()
        return padded["input_ids"].to(device), mask.to(device)

    def _tokens_of(self, text: str, offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> tuple[int, int]:
        """Return first token and one past the last of a range of characters."""
        found = token_span(offsets, *span)
        if found is None:
            raise ConfigError(f"class name too long (or empty) in prompt {text!r}: {self.context_length} tokens fit")
        return found

    def train(self, mode: bool = True) -> "TextEncoder":
        """Set training mode for the parts that learn; frozen layers keep their dropout off."""
        super().train(mode)
        for module in self.body.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self

    def compile_body(self, **options: Any) -> None:
        """Compile the transformer for dynamic shapes: blocks of captions have others in every batch.

        Args:
            options: of `torch.compile`, such as its backend.
        """
        self.body.compile(dynamic=True, **options)

    def tokenize(self, texts: Sequence[str]) -> Any:
        """Return token ids, masks and character offsets of texts as lists, truncated to the context length."""
        return self.tokenizer(list(texts), truncation=True, max_length=self.context_length, return_offsets_mapping=True)

    @property
    def architecture(self) -> dict[str, Any]:
        """Configuration that rebuilds this encoder, beside weights and tokenizer; plain JSON values."""
        config = self.body.config.to_dict()
        config["model_type"] = self.body.config.model_type
        return {"body": config, "pooling": self.pooling, "context_length": self.context_length}


def rebuild_text_encoder(
    architecture: dict[str, Any], embed_dim: int, tokenizer: PreTrainedTokenizerBase
) -> TextEncoder:
    """Rebuild the encoder of a saved model with random weights."""
    config = dict(architecture["body"])
    body = _from_config(without_kernel(AutoConfig.for_model(config.pop("model_type"), **config)))
    return TextEncoder(body, tokenizer, architecture["pooling"], embed_dim, int(architecture["context_length"]))


def scratch_text_encoder(settings: ScratchText, embed_dim: int) -> TextEncoder:
    """Build SimZSS's tower, a causal CLIP text transformer with random weights."""
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.context_length,
        hidden_act="gelu",
        projection_dim=embed_dim,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return TextEncoder(CLIPTextModel(config), tokenizer, "eot", embed_dim, settings.context_length)


def pretrained_text_encoder(settings: PretrainedText, embed_dim: int) -> TextEncoder:
    """Load a transformers text model and freeze all but its last layers.

    Raises:
        ConfigError: more layers or positions than the model has.
        ModelError: weights or a tokenizer that are missing, broken or of another kind.
    """
    weights, context_length = settings.weights, settings.context_length
    folder = fetch(weights, "text.weights")
    try:
        config = read_pretrained_config(folder)
        family = MODEL_MAPPING.get(type(config), None)
        if not isinstance(family, type):
            raise ModelError(f"it is a {config.model_type} model, which is no single network")
        body, loading = load_pretrained(family, folder, config)
    except ModelError as error:
        raise ModelError(f"text.weights={weights} is no transformers text model: {error}") from error
    lacking = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if lacking:
        raise ModelError(f"text.weights={weights} lacks {', '.join(lacking[:3])} ({len(lacking)} tensors)")
    if not isinstance(getattr(body.config, "hidden_size", None), int):
        raise ModelError(f"text.weights={weights} is a {body.config.model_type} model, not a text encoder")
    limit = _positions(body, default=context_length)
    if context_length > limit:
        raise ConfigError(f"text.context_length={context_length} is more than the {limit} positions of {weights}")
    encoder = TextEncoder(body, directory_tokenizer(folder), "mean", embed_dim, context_length)
    _freeze_all_but_last(body, settings.trainable_layers)
    return encoder


def _span_sums(tokens: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """Sum the normalised tokens (B, L, D) of one range in each row: (B, D)."""
    length = tokens.shape[1]
    index = [(row * length + i, row) for row, (start, end) in enumerate(ranges) for i in range(start, end)]
    token, owner = torch.tensor(index, device=tokens.device).unbind(1)
    return token_sums(tokens.flatten(0, 1), token, owner, len(ranges))


def _attention_for(device: torch.device) -> AbstractContextManager[None]:
    """Select plain matrix products for attention on a CPU, whose fused kernel is slow at gradients of captions."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _positions(body: Any, default: int) -> int:
    """Return the maximum sequence length. RoBERTa counts positions from the padding index on: fewer than rows."""
    rows = int(getattr(body.config, "max_position_embeddings", default))
    table = getattr(getattr(body, "embeddings", None), "position_embeddings", None)
    reserved = getattr(table, "padding_idx", None)
    return rows if reserved is None else rows - reserved - 1


def _freeze_all_but_last(body: nn.Module, trainable_layers: int | str) -> None:
    """Freeze all of a model but its last layers; for `all`, only what the output never uses."""
    pooler = getattr(body, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)  # not on the path to any loss: DDP would wait for its gradient
    if trainable_layers == "all":
        return
    layers = max((m for m in body.modules() if isinstance(m, nn.ModuleList)), key=len, default=nn.ModuleList())
    if not isinstance(trainable_layers, int) or not 0 <= trainable_layers <= len(layers):
        raise ConfigError(f"text.trainable_layers={trainable_layers} must be all or 0 to {len(layers)}")
    body.requires_grad_(False)
    for layer in list(layers)[len(layers) - trainable_layers :]:
        layer.requires_grad_(True)


def _from_config(config: Any) -> nn.Module:
    return CLIPTextModel(config) if isinstance(config, CLIPTextConfig) else AutoModel.from_config(config)
