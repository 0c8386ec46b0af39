"""Class names in sentences, and what the text encoder makes of them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.concepts.align import token_span
from simzss.errors import InputError, nearest
from simzss.models.pooling import token_sums
from simzss.models.simzss import SimZSS

READOUTS = ("sentence", "concept", "both")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    "scene": (
        "a photo of a {}.",
        "a photo of the {}.",
        "there is a {} here.",
        "a picture that shows a {}.",
        "a {} seen from the side.",
        "a {} and other things.",
        "people near a {}.",
    ),
}
_BATCH = 256


def templates(name: str) -> tuple[str, ...]:
    """The prompt templates of that name; `imagenet80` are CLIP's eighty, as `open-clip-torch` carries them.

    Raises:
        InputError: unknown name.
    """
    if name == "imagenet80":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    if name not in TEMPLATES:
        raise InputError(f"templates={name} is unknown; {nearest(name, [*TEMPLATES, 'imagenet80'])}")
    return TEMPLATES[name]


@torch.no_grad()
def embed_names(model: SimZSS, names: Sequence[str], prompts: Sequence[str], readout: str) -> Tensor:
    """One vector per name, averaged over prompts.

    Args:
        model: whose text encoder reads the prompts.
        names: S names.
        prompts: each with one `{}`.
        readout: `sentence` (the prompt's sentence vector), `concept` (the tokens of the name inside the prompt, as
            the concept loss trains them), or `both` (the sum of the two).

    Returns:
        (S, D) L2-normalised.

    Raises:
        InputError: unknown read-out, or a name too long for the context.
    """
    if readout not in READOUTS:
        raise InputError(f"readout={readout} is unknown; {nearest(readout, READOUTS)}")
    starts = [prompt.index("{}") for prompt in prompts]
    texts = [prompt.format(name) for name in names for prompt in prompts]
    spans = [(start, start + len(name)) for name in names for start in starts]
    vectors = torch.cat(
        [_read(model, texts[i : i + _BATCH], spans[i : i + _BATCH], readout) for i in range(0, len(texts), _BATCH)]
    )
    return F.normalize(vectors.view(len(names), len(prompts), -1).mean(dim=1), dim=-1)


def _read(model: SimZSS, texts: list[str], spans: list[tuple[int, int]], readout: str) -> Tensor:
    """(T, D) L2-normalised vectors of T prompts."""
    encoder = model.text_encoder
    device = model.logit_scale.device
    tokens = encoder.tokenize(texts)
    ranges = [token_span(offsets, *span) for offsets, span in zip(tokens["offset_mapping"], spans, strict=True)]
    named_by = [found for found in ranges if found is not None]
    for text, found in zip(texts, ranges, strict=True):
        if found is None:
            raise InputError(f"class name too long (or empty) in prompt {text!r}: {encoder.context_length} tokens fit")
    padded = encoder.tokenizer.pad({"input_ids": tokens["input_ids"]}, padding_side="right", return_tensors="pt")
    lengths = torch.tensor([len(ids) for ids in tokens["input_ids"]])
    mask = (torch.arange(padded["input_ids"].shape[1]) < lengths[:, None]).long()
    text_features = model.encode_text(padded["input_ids"].to(device), mask.to(device))
    if readout == "sentence":
        return text_features.pooled
    length = text_features.tokens.shape[1]
    places = [(row * length + place, row) for row, (start, end) in enumerate(named_by) for place in range(start, end)]
    token, owner = torch.tensor(places, device=device).unbind(1)
    named = F.normalize(token_sums(text_features.tokens.flatten(0, 1), token, owner, len(texts)), dim=-1)
    return named if readout == "concept" else F.normalize(named + text_features.pooled, dim=-1)
