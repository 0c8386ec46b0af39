"""What the segmenter gives for an image, made when it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from simzss.segmentation.classifier import ClassProbabilities
from simzss.segmentation.inference.scores import Rule, ScoreMap
from simzss.segmentation.refine.sam import Refined, RegionCounts
from simzss.segmentation.refine.vote import VoteCounts, Voted

Counts = RegionCounts | VoteCounts


class Scores(Protocol):
    """Scores of an image of H x W pixels."""

    @property
    def counts(self) -> Counts | None:
        """What became of the regions that a refinement asked about; None without such a refinement."""

    def labels(self) -> Tensor:
        """(H, W) int64."""

    def logits(self) -> Tensor:
        """(K, H, W) float32; the largest one is the label."""


@dataclass(frozen=True)
class MapScores:
    """Scores as small as the model made them, and the rule that makes labels of them."""

    map: ScoreMap
    rule: Rule
    counts: Counts | None = None

    def labels(self) -> Tensor:
        """See `Scores`."""
        return self.map.labels(self.rule)

    def logits(self) -> Tensor:
        """See `Scores`."""
        return self.rule.logits(self.map.full())


@dataclass(frozen=True)
class RegionScores:
    """What a promptable segmenter made of the coarse map."""

    found: Refined | Voted

    @property
    def counts(self) -> Counts:
        """See `Scores`."""
        return self.found.counts

    def labels(self) -> Tensor:
        """See `Scores`."""
        return self.found.labels

    def logits(self) -> Tensor:
        """See `Scores`: logarithms of the merged scores."""
        return ClassProbabilities().logits(self.found.scores())


class Prediction:
    """Result for one image of H x W pixels, on the CPU, made when it is asked for.

    Args:
        score: makes the scores of the image. Called for, and not kept: refined scores are large, and many predictions
            may be waiting.
        class_names: K names, indexed by the mask.
    """

    def __init__(self, score: Callable[[], Scores], class_names: tuple[str, ...]) -> None:
        self.score = score
        self.class_names = class_names

    @property
    def mask(self) -> Tensor:
        """(H, W) int64, indices into `class_names`."""
        return self._labelled[0]

    @property
    def regions(self) -> Counts | None:
        """What became of the regions that a refinement asked about; None without such a refinement."""
        return self._labelled[1]

    @cached_property
    def _labelled(self) -> tuple[Tensor, Counts | None]:
        scores = self.score()
        return scores.labels().cpu(), scores.counts

    @cached_property
    def logits(self) -> Tensor:
        """(K, H, W) float32, made when asked for: for many classes they are large."""
        return self.score().logits().cpu()
