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

    `weights` (V, D) holds vectors of the classes and after them of the background words, `sizes` (S) how many vectors
    belong to each; `names` (K) starts with "background" when the rule makes one; `rows` (S) are all names of each class
    and the background words.
    """

    names: tuple[str, ...]
    weights: Tensor
    sizes: tuple[int, ...]
    background: Background
    temperature: float
    rows: tuple[tuple[str, ...], ...] = ()

    def similarity(self, patches: Tensor) -> Tensor:
        """(B, N, D) unit patches -> (B, S, N) cosines with classes and background words, the best of several vectors;
        computed in the patches' dtype."""  # fmt: skip
        cosines = torch.einsum("bnd,vd->bvn", patches, self.weights.to(patches))
        if len(self.sizes) == len(self.weights):
            return cosines
        return torch.stack([part.amax(dim=1) for part in cosines.split(self.sizes, dim=1)], dim=1)

    def logits(self, similarity: Tensor) -> Tensor:
        """(S, …) cosines -> (K, …) logits whose argmax is the label.

        Without a threshold: cosines over `temperature`; with one: log-probabilities. Class 0 of a background has the
        best of its words, or the logarithm of the threshold where that is more.
        """
        scaled = similarity.float() / self.temperature
        if not self.background.present:
            return scaled
        rivals = []
        if self._threshold > 0:
            scaled = F.log_softmax(scaled, dim=0)
            rivals.append(torch.full_like(scaled[:1], self._threshold).log())
        rivals.append(scaled[self._count :])
        return torch.cat([torch.cat(rivals).amax(dim=0, keepdim=True), scaled[: self._count]])

    def probabilities(self, similarity: Tensor) -> Tensor:
        """(S, …) cosines -> (K, …) probabilities whose argmax is the label.

        Class 0 of a background has that of the best of its words, or the threshold where that is more, so that they may
        sum to more than 1.
        """
        logits = self.logits(similarity)
        return logits.exp() if self._threshold > 0 else logits.softmax(dim=0)

    @property
    def prunable(self) -> bool:
        """Whether classes that are not the best have no influence; a probability depends on all of them."""
        return self._threshold == 0

    def decide(self, scores: Tensor, rows: Tensor | None = None) -> Tensor:
        """Labels of cosines: the argmax of `logits`, without making them.

        Args:
            scores: (S, …) cosines, or those of some `rows`.
            rows: which rows of the S they are; None for all.

        Returns:
            (…) int64.
        """
        label, confidence = self.decide_with_confidence(scores, rows)
        return label if confidence is None else label.masked_fill(confidence < self._threshold, 0)

    def decide_with_confidence(self, scores: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Labels before the threshold and, where there is one, the probability of the best class or word."""
        best, row = scores.max(dim=0)
        if rows is not None:
            row = rows[row]
        label = row + 1 if self.background.present else row
        if len(self.sizes) > self._count:
            label = label.masked_fill(row >= self._count, 0)
        if self._threshold == 0:
            return label, None
        return label, ((scores - best) / self.temperature).exp().sum(dim=0).reciprocal()

    @property
    def _count(self) -> int:
        """Number of classes without the background."""
        return len(self.names) - self.background.present

    @property
    def _threshold(self) -> float:
        return self.background.threshold if self.background.has_threshold else 0.0


class ClassProbabilities:
    """The rule for scores (K, …) that are probabilities of the classes, background included: the largest wins."""

    prunable = True

    def logits(self, scores: Tensor) -> Tensor:
        """(K, …) log-probabilities."""
        return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()

    def decide(self, scores: Tensor, rows: Tensor | None = None) -> Tensor:
        """Labels (…) int64 of scores, or of some `rows` of them."""
        label = scores.max(dim=0).indices
        return label if rows is None else rows[label]


def build_classifier(
    model: SimZSS,
    classes: ClassNames,
    *,
    background: Background,
    template_set: str,
    readout: str,
    temperature: float,
    merge: str = "mean",
) -> Classifier:
    """Embed class names.

    Args:
        merge: a class given as several names is the `mean` of their vectors, or scores as the best of them (`max`).

    Raises:
        InputError: no class, an empty name, a class listed twice.
    """
    groups = checked_names(classes, background)
    names = tuple(group[0] for group in groups)
    words = background.words if background.has_words else ()
    flat = [name for group in groups for name in group] + list(words)
    vectors = embed_names(model, flat, templates(template_set), readout)
    sizes = [len(group) for group in groups] + [1] * len(words)
    if merge == "mean":
        vectors = torch.stack([F.normalize(chunk.mean(dim=0), dim=0) for chunk in vectors.split(sizes)])
        sizes = [1] * len(sizes)
    all_names = ("background", *names) if background.present else names
    rows = (*groups, *((word,) for word in words))
    return Classifier(all_names, vectors, tuple(sizes), background, temperature, rows)


def checked_names(classes: ClassNames, background: Background) -> list[tuple[str, ...]]:
    """All names of each class, white space made plain.

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
    names = [group[0] for group in groups]
    names = ["background", *names] if background.present else names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"class {twice[0]!r} is listed twice")
    return groups
