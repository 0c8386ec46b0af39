"""Class names and background rule as a linear classifier of patches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.errors import InputError
from simzss.models.simzss import SimZSS
from simzss.segmentation.background import Background
from simzss.segmentation.prompts import embed_names, templates

ClassNames = Sequence[str | Sequence[str]]


@dataclass(frozen=True)
class Classifier:
    """K classes as unit vectors, with the background rule.

    `weights` (S, D) holds the classes and after them the background words; `names` (K) starts with "background"
    when the rule makes one.
    """

    names: tuple[str, ...]
    weights: Tensor
    background: Background
    temperature: float

    def similarity(self, patches: Tensor) -> Tensor:
        """(B, N, D) unit patches -> (B, S, N) cosines, computed in the patches' dtype."""
        return torch.einsum("bnd,sd->bsn", patches, self.weights.to(patches))

    def logits(self, similarity: Tensor) -> Tensor:
        """(S, …) cosines -> (K, …) logits whose argmax is the label.

        Without background or with words: cosines over `temperature`. With a threshold: log-probabilities, and the
        logarithm of the threshold for class 0.
        """
        scaled = similarity.float() / self.temperature
        if self.background.kind == "threshold":
            log_probability = F.log_softmax(scaled, dim=0)
            floor = torch.full_like(log_probability[:1], self.background.threshold).log()
            return torch.cat([floor, log_probability])
        if self.background.kind == "words":
            count = len(self.names) - 1
            return torch.cat([scaled[count:].amax(dim=0, keepdim=True), scaled[:count]])
        return scaled


def build_classifier(
    model: SimZSS,
    classes: ClassNames,
    *,
    background: Background,
    template_set: str,
    readout: str,
    temperature: float,
) -> Classifier:
    """Embed class names; a class given as several names is the mean of their vectors.

    Raises:
        InputError: no class, an empty name, a class listed twice.
    """
    if isinstance(classes, str):
        raise InputError(f"classes must be a list of names, not the text {classes!r}")
    groups = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in classes]
    groups = [tuple(" ".join(name.split()) for name in group) for group in groups]
    if not groups:
        raise InputError("class list is empty")
    if any(not group or not all(group) for group in groups):
        raise InputError(f"class list holds an empty name: {', '.join('/'.join(group) for group in groups)}")
    names = tuple(group[0] for group in groups)
    all_names = ("background", *names) if background.present else names
    twice = sorted({name for name in all_names if all_names.count(name) > 1})
    if twice:
        raise InputError(f"class {twice[0]!r} is listed twice")
    words = background.words if background.kind == "words" else ()
    flat = [name for group in groups for name in group] + list(words)
    vectors = embed_names(model, flat, templates(template_set), readout)
    sizes = [len(group) for group in groups] + [1] * len(words)
    weights = torch.stack([F.normalize(chunk.mean(dim=0), dim=0) for chunk in vectors.split(sizes)])
    return Classifier(all_names, weights, background, temperature)
