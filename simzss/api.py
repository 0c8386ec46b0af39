"""What Python code calls: the verbs as functions, and lists of what there is. Heavy imports happen inside."""

from pathlib import Path
from typing import Any


def train(*, config: str | Path | None = None, conf_dir: str | Path | None = None, **settings: Any) -> Path:
    """Train a text encoder on captions and return the model folder.

        simzss.train(experiment="demo", data={"shards": "shards/*.tar"}, backbone={"weights": "weights"})
        simzss.train(data={"shards": "shards/*.tar"}, backbone={"preset": "clip_vitb16", "weights": "weights"})

    Args:
        config: file to start from, such as the `config.yaml` of a run.
        conf_dir: folder of your own presets, searched before ours; default `./conf` when it is there.
        settings: keys of `simzss train --help`; a group takes the name of a preset, or a mapping of its keys in
            which `preset` is that name.

    Raises:
        InputError: settings or data that do not hold.
    """
    return _run("train", config, conf_dir, settings)


def train_masks(*, config: str | Path | None = None, conf_dir: str | Path | None = None, **settings: Any) -> Path:
    """Train a mask head on a model from photos with masks and return the new model folder.

    Args:
        config: see `train`.
        conf_dir: see `train`.
        settings: keys of `simzss train-masks --help`.

    Raises:
        InputError: settings, model or masks that do not hold.
    """
    return _run("train-masks", config, conf_dir, settings)


def cache_features(*, config: str | Path | None = None, conf_dir: str | Path | None = None, **settings: Any) -> Any:
    """Compute and store the features of all images of shards; return a `CacheSummary`.

    Args:
        config: see `train`.
        conf_dir: see `train`.
        settings: keys of `simzss cache --help`.

    Raises:
        InputError: settings, shards or backbone that do not hold.
    """
    return _run("cache", config, conf_dir, settings)


def evaluate(
    *, config: str | Path | None = None, conf_dir: str | Path | None = None, **settings: Any
) -> dict[str, Any]:
    """Measure a model on a benchmark and return the results by name, as `results.json` has them.

    Args:
        config: see `train`.
        conf_dir: see `train`.
        settings: keys of `simzss eval --help`.

    Raises:
        InputError: settings, model or benchmark that do not hold.
    """
    found: dict[str, Any] = _run("eval", config, conf_dir, settings)
    return found


def list_backbones(conf_dir: str | Path | None = None) -> list[str]:
    """Return the names that `backbone=NAME` accepts."""
    return _choices("backbone", conf_dir)


def list_benchmarks(conf_dir: str | Path | None = None) -> list[str]:
    """Return the names that `benchmark=NAME` accepts."""
    return _choices("benchmark", conf_dir)


def _choices(group: str, conf_dir: str | Path | None) -> list[str]:
    from simzss.settings.compose import choices, user_presets

    with user_presets(conf_dir):
        return choices(group)


def _run(verb: str, config: str | Path | None, conf_dir: str | Path | None, settings: dict[str, Any]) -> Any:
    from simzss.commands.verbs import VERBS, settings_of
    from simzss.settings.compose import user_presets

    with user_presets(conf_dir):
        return VERBS[verb].run(settings_of(verb, settings, config))
