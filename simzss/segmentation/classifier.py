"""Class names and background rule as a linear classifier of patches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simzss.data.settings import Background
from simzss.errors import ConfigError
from simzss.models.simzss import SimZSS
from simzss.segmentation.prompts import embed_names, templates

ClassNames = str | Sequence[str | Sequence[str]] | Mapping[str, str | Sequence[str]]
"""Classes: "cat/kitten,dog", a list of such entries, lists of the names of each, or synonyms by name."""

Groups = list[tuple[str, ...]]
"""All names of each class, the first of which stands for it."""


@dataclass(frozen=True)
class Classifier:
    """K classes as unit vectors, with the background rule.

    Attributes:
        names: K names; the first is "background" when the rule makes one.
        weights: (V, D) vectors of the classes and after them of the background words.
        sizes: number of vectors of each of the S classes and background words.
        background: rule.
        temperature: of the softmax over cosines.
        rows: all names of each of the S.
    """

    names: tuple[str, ...]
    weights: Tensor
    sizes: tuple[int, ...]
    background: Background
    temperature: float
    rows: tuple[tuple[str, ...], ...] = ()

    def similarity(self, patches: Tensor) -> Tensor:
        """Compute cosines of unit patches (B, N, D) with classes and background words, the best of several vectors:
        (B, S, N) in the patches' dtype."""
        cosines = torch.einsum("bnd,vd->bvn", patches, self.weights.to(patches))
        if len(self.sizes) == len(self.weights):
            return cosines
        return torch.stack([part.amax(dim=1) for part in cosines.split(self.sizes, dim=1)], dim=1)

    def logits(self, similarity: Tensor) -> Tensor:
        """Turn cosines (S, …) into logits (K, …) whose argmax is the label.

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
        """Turn cosines (S, …) into probabilities (K, …) whose argmax is the label.

        Class 0 of a background has that of the best of its words, or the threshold where that is more, so that they may
        sum to more than 1.
        """
        logits = self.logits(similarity)
        return logits.exp() if self._threshold > 0 else logits.softmax(dim=0)

    @property
    def prunable(self) -> bool:
        """Tell whether classes that are not the best have no influence; a probability depends on all of them."""
        return self._threshold == 0

    def decide(self, scores: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the argmax of `logits`, without computing them.

        Args:
            scores: (S, …) cosines, or those of some `rows`.
            rows: indices of these rows; None for all.

        Returns:
            (…) int64.
        """
        label, confidence = self.decide_with_confidence(scores, rows)
        return label if confidence is None else label.masked_fill(confidence < self._threshold, 0)

    def decide_with_confidence(self, scores: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return labels before the threshold and, where there is one, the probability of the best class or word."""
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
    """Decision rule for scores (K, …) that are probabilities of the classes, background included: the largest wins."""

    prunable = True

    def logits(self, scores: Tensor) -> Tensor:
        """Return (K, …) log-probabilities."""
        return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()

    def decide(self, scores: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return labels (…) int64 of scores, or of some `rows` of them."""
        label = scores.max(dim=0).indices
        return label if rows is None else rows[label]


def build_classifier(
    model: SimZSS,
    classes: ClassNames,
    *,
    background: Background,
    template_set: str,
    text_pooling: str,
    temperature: float,
    merge: str = "mean",
) -> Classifier:
    """Embed class names.

    Args:
        model: with the text encoder.
        classes: see `parse_classes`.
        background: rule.
        template_set: name of the prompt templates.
        text_pooling: see `embed_names`.
        temperature: of the softmax over cosines.
        merge: a class given as several names is the `mean` of their vectors, or scores as the best of them (`max`).

    Raises:
        ConfigError: no class, an empty name, a class listed twice.
    """
    groups = checked_names(parse_classes(classes), background)
    vectors = embed_names(model, names_of(groups, background), templates(template_set), text_pooling)
    return assemble(groups, background, vectors, temperature, merge)


def names_of(groups: Groups, background: Background) -> tuple[str, ...]:
    """Return all names that a classifier embeds: those of each class, then the background words."""
    words = background.words if background.has_words else ()
    return (*(name for group in groups for name in group), *words)


def assemble(groups: Groups, background: Background, vectors: Tensor, temperature: float, merge: str) -> Classifier:
    """Make a classifier of the vectors of `names_of`; arguments as of `build_classifier`."""
    words = background.words if background.has_words else ()
    sizes = [len(group) for group in groups] + [1] * len(words)
    if merge == "mean":
        vectors = torch.stack([F.normalize(chunk.mean(dim=0), dim=0) for chunk in vectors.split(sizes)])
        sizes = [1] * len(sizes)
    names = tuple(group[0] for group in groups)
    names = ("background", *names) if background.present else names
    rows = (*groups, *((word,) for word in words))
    return Classifier(names, vectors, tuple(sizes), background, temperature, rows)


def parse_classes(classes: ClassNames) -> Groups:
    """Return all names of each class: `cat/kitten,dog` -> [(cat, kitten), (dog,)].

    Args:
        classes: such a text; a list of its entries, or of lists of names; a mapping from a name to its synonyms.

    Raises:
        ConfigError: nothing in it.
    """
    if isinstance(classes, Mapping):
        entries = [(name, *_split(synonyms)) for name, synonyms in classes.items()]
    else:
        given = [entry for entry in classes.split(",") if entry.strip()] if isinstance(classes, str) else classes
        entries = [_split(entry) for entry in given]
    if not any(name for group in entries for name in group):
        raise ConfigError('classes is empty: give names such as classes="cat,dog"')
    return entries


def _split(entry: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip() for name in entry.split("/")) if isinstance(entry, str) else tuple(entry)


def checked_names(groups: Sequence[Sequence[str]], background: Background) -> Groups:
    """Return all names of each class, white space normalised.

    Raises:
        ConfigError: no class, an empty name, a class listed twice.
    """
    found = [tuple(" ".join(name.split()) for name in group) for group in groups]
    if not found:
        raise ConfigError("class list is empty")
    if any(not group or not all(group) for group in found):
        raise ConfigError(f"class list holds an empty name: {', '.join('/'.join(group) for group in found)}")
    names = [group[0] for group in found]
    names = ["background", *names] if background.present else names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"class {twice[0]!r} is listed twice")
    return found
