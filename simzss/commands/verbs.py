"""The table of verbs: settings class and function of each, imported when it is called."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        module: below `simzss.commands`; has the settings class and `run`.
        settings: name of the class.
        usage: arguments of a typical call.
        about: what it does, in a few words.
    """

    module: str
    settings: str
    usage: str
    about: str

    @property
    def cls(self) -> Any:
        """Return the settings class."""
        return getattr(self._module, self.settings)

    @property
    def run(self) -> Callable[..., Any]:
        """Return the function that does the work."""
        function: Callable[..., Any] = self._module.run
        return function

    @property
    def _module(self) -> Any:
        return importlib.import_module(f"simzss.commands.{self.module}")


VERBS = {
    "train": Verb("train", "TrainSettings", "[experiment=NAME] data.shards=PATTERN", "train a text encoder"),
    "train-masks": Verb(
        "train_masks",
        "TrainMasksSettings",
        "[experiment=NAME] model=DIR masks.root=DIR",
        "train a mask head on a model",
    ),
    "cache": Verb("cache", "CacheSettings", "data.shards=PATTERN output=DIR", "keep the backbone's features"),
    "eval": Verb(
        "evaluate", "EvalSettings", "model=DIR benchmark=NAME benchmark.root=DIR", "measure zero-shot segmentation"
    ),
    "segment": Verb("segment", "SegmentSettings", 'IMAGE… model=DIR classes="cat,dog"', "label your photos"),
    "report": Verb("report", "ReportSettings", "RUN RUN…", "compare runs of eval on the same images"),
    "threshold": Verb(
        "threshold", "ThresholdSettings", "model=DIR benchmark=NAME benchmark.root=DIR", "find the background threshold"
    ),
}


def settings_of(verb: str, overrides: Sequence[str] | Mapping[str, Any], config: str | Path | None = None) -> Any:
    """Compose and validate the settings of a verb, an object of its class: the one place where values become objects.

    Args:
        verb: a key of `VERBS`.
        overrides: `key=value` each, or values of Python by key.
        config: configuration file to start from.

    Raises:
        ConfigError: anything wrong with them.
    """
    from simzss.settings.compose import compose

    return VERBS[verb].cls.of(compose(verb, overrides, config))


def training_verb(overrides: Sequence[str]) -> str:
    """Return `train-masks` where the overrides of `simzss train` are meant for it, as before version 0.2."""
    from simzss.settings.compose import choices, groups_of, names_in, split
    from simzss.settings.renamed import renamed

    pairs = [renamed(*split(override), quiet=True) for override in overrides if "=" in override]
    own = set(groups_of("train-masks")) - set(groups_of("train"))
    if any(key.partition(".")[0] in own for key, _ in pairs):
        return "train-masks"
    named = {name for key, value in pairs if key == "experiment" for name in names_in(value)}
    masks_only = set(choices("experiment", "train-masks")) - set(choices("experiment", "train"))
    return "train-masks" if named & masks_only else "train"
