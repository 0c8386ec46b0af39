"""Class names in prompts, and their vectors."""

from collections.abc import Sequence
from threading import Lock
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.errors import ConfigError, nearest
from simzss.models.settings import TextPooling
from simzss.models.simzss import SimZSS

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

_ENCODING = Lock()
"""One thread at a time: fast tokenizers are not thread-safe, and the text encoder's choice of an attention kernel is
one for the whole process."""


def templates(name: str) -> tuple[str, ...]:
    """Return the prompt templates of that name; `imagenet80` are CLIP's eighty, as `open-clip-torch` carries them.

    Raises:
        ConfigError: unknown name.
    """
    if name == "imagenet80":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    if name not in TEMPLATES:
        raise ConfigError(f"templates={name} is unknown; {nearest(name, [*TEMPLATES, 'imagenet80'])}")
    return TEMPLATES[name]


def check_text_pooling(name: str) -> None:
    """Raise a ConfigError for an unknown text pooling."""
    if name not in get_args(TextPooling):
        raise ConfigError(f"text_pooling={name} is unknown; {nearest(name, get_args(TextPooling))}")


@torch.no_grad()
def embed_names(model: SimZSS, names: Sequence[str], prompts: Sequence[str], text_pooling: str) -> Tensor:
    """Embed names, each as the mean over prompts.

    Args:
        model: whose text encoder reads the prompts.
        names: S names.
        prompts: each with one `{}`.
        text_pooling: `sentence` (the prompt's sentence vector), `tokens` (the tokens of the name inside the prompt, as
            the concept loss trains them), or `both` (the sum of the two).

    Returns:
        (S, D) L2-normalised.

    Raises:
        ConfigError: unknown text pooling, or a name too long for the context.
    """
    check_text_pooling(text_pooling)
    starts = [prompt.index("{}") for prompt in prompts]
    texts = [prompt.format(name) for name in names for prompt in prompts]
    # Spans are checked even where they are not used: a name that is cut off has no right vector.
    spans = [(start, start + len(name)) for name in names for start in starts]
    with _ENCODING:
        pooled, sums = model.text_encoder.encode(texts, spans)
    assert sums is not None
    sentence, tokens = F.normalize(pooled, dim=-1), F.normalize(sums, dim=-1)
    vectors = {"sentence": sentence, "tokens": tokens, "both": F.normalize(tokens + sentence, dim=-1)}[text_pooling]
    return F.normalize(vectors.view(len(names), len(prompts), -1).mean(dim=1), dim=-1)
