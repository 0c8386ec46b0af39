"""The `simzss` command: parses a verb and its overrides, calls one function. Imports the heavy parts inside a verb."""

import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from simzss import __version__
from simzss.errors import InputError, nearest, run_program

HELP = """simzss {version}: an open vocabulary for any frozen vision backbone

usage:
  simzss train   [experiment=NAME] data.shards=PATTERN [key=value …]      train a text encoder
  simzss train   experiment=mrovseg model=DIR masks.root=DIR [key=value …] train a head with masks on a model
  simzss cache   data.shards=PATTERN output=DIR [key=value …]             keep the backbone's features of all images
  simzss eval    model=DIR benchmark=NAME benchmark.root=DIR [key=value …] measure zero-shot segmentation
  simzss segment IMAGE… model=DIR classes="cat,dog" [key=value …]         label your photos with your words
  simzss report  RUN RUN… [key=value …]                                   compare runs of eval on the same images
  simzss threshold model=DIR benchmark=NAME benchmark.root=DIR [key=value …] find the background threshold of a model
  simzss config  show VERB [key=value …]                                  print what a verb would run with
  simzss config  validate VERB [key=value …]                              check it without running
  simzss config  copy VERB FILE [key=value …]                             write it to a file of your own
  simzss VERB --help                                                      a verb's keys and choices
  simzss --version

Every key of conf/ can be set as key=value; a group such as backbone=NAME is exchanged by its name."""

VERBS = ("train", "cache", "eval", "segment", "report", "threshold", "config")


def main() -> None:
    """Entry point of the console script."""
    run_program(lambda: dispatch(sys.argv[1:]))


def dispatch(arguments: list[str]) -> None:
    """Run one verb.

    Raises:
        InputError: unknown verb or bad arguments.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(version=__version__))
        return
    if arguments[0] == "--version":
        print(__version__)
        return
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise InputError(f"unknown verb {verb!r}; {nearest(verb, VERBS)}")
    logging.basicConfig(level=logging.INFO if _speaks() else logging.WARNING, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "huggingface_hub", "timm", "PIL", "fsspec", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if verb == "config":
        print(HELP.format(version=__version__)) if "-h" in rest or "--help" in rest else _config(rest)
    elif "-h" in rest or "--help" in rest:
        _help(verb, rest)
    else:
        verbs = {"train": _train, "cache": _cache, "eval": _eval, "segment": _segment, "report": _report}
        (verbs | {"threshold": _threshold})[verb](rest)


def _train(overrides: list[str]) -> None:
    from simzss.config import compose, root_of
    from simzss.distributed import leave

    root = root_of("train", overrides)
    config = compose(root, overrides)
    if root == "train":
        from simzss.training.run import train

        folder = train(config)
    else:
        from simzss.training.mask_run import train_masks

        folder = train_masks(config)
    if _speaks():
        print(f"model: {folder}")
    leave()


def _cache(overrides: list[str]) -> None:
    from simzss.config import compose
    from simzss.features.build import run_cache

    summary = run_cache(compose("cache", overrides))
    if _speaks():
        skipped = f", {len(summary.skipped)} skipped" if summary.skipped else ""
        print(f"features: {summary.folder} ({summary.images} images{skipped})")


def _eval(overrides: list[str]) -> None:
    from simzss.config import compose
    from simzss.evaluation.run import run_evaluation

    results = run_evaluation(compose("eval", overrides))
    if _speaks():
        for name, result in results.items():
            print(f"{name}: {_summary(result)}")


def _speaks() -> bool:
    """Whether this process is the one of those that torchrun or srun started whose words count."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _summary(result: dict[str, Any]) -> str:
    """A result of an evaluation on one line."""
    if "missing" in result:
        return f"not measured: {result['missing']}"
    skipped = f", {len(result['skipped'])} skipped" if result.get("skipped") else ""
    if result.get("kind") == "retrieval":
        ways = (("image to text", result["image_to_text"]), ("text to image", result["text_to_image"]))
        scores = "  ".join(f"{way} " + " ".join(f"{k} {v:.1f}" for k, v in found.items()) for way, found in ways)
        return f"{scores}  ({result['images']} images, {result['captions']} captions{skipped})"
    if result.get("kind") == "classification":
        return f"top-1 {result['top1']:.2f}  top-5 {result['top5']:.2f}  ({result['images']} images{skipped})"
    images = f"({result['images']} images)"
    if result["mIoU"] is None:
        return f"no pixel counts {images}"
    engineered = result.get("engineered")
    more = f"  engineered names: mIoU {engineered['mIoU']:.2f}" if engineered else ""
    apart = result.get("trained_with_masks", {})
    if apart.get("harmonic") is not None:
        more += "  " + "  ".join(f"{key} {apart[key]:.2f}" for key in ("seen", "unseen", "harmonic"))
    return f"mIoU {result['mIoU']:.2f}  aAcc {result['aAcc']:.2f}{more}  {images}"


def _segment(arguments: list[str]) -> None:
    from simzss.config import compose
    from simzss.segmentation.run import segment_files

    overrides, images = _divided(arguments)
    for path in segment_files(compose("segment", overrides), images):
        print(path)


def _report(arguments: list[str]) -> None:
    from simzss.config import compose
    from simzss.reports.compare import run_comparison

    overrides, runs = _divided(arguments)
    config = compose("report", overrides)
    for item in run_comparison(config, runs).differences:
        print(
            f"{item.run}  {item.benchmark} ({item.names} names): {item.difference:+.2f} "
            f"[{item.low:+.2f}, {item.high:+.2f}]  ({item.images} images)"
        )
    print(Path(config.output_dir) / "comparison.html")


def _threshold(overrides: list[str]) -> None:
    from simzss.config import compose
    from simzss.evaluation.threshold import run_threshold

    found = run_threshold(compose("threshold", overrides))
    if not _speaks():
        return
    images, scores = found["images"], found["mIoU"]
    before = "" if found["mIoU_configured"] is None else f" ({found['mIoU_configured']:.2f} with the present one)"
    print(
        f"threshold {found['threshold']}: mIoU {scores['chosen on']:.2f} on {images['chosen on']} images, "
        f"{scores['checked on']:.2f}{before} on the {images['checked on']} others"
    )


def _divided(arguments: list[str]) -> tuple[list[str], list[Path]]:
    """Overrides and paths. An override begins with a key; a path whose name does too is given as ./name."""
    overrides = [argument for argument in arguments if re.match(r"[A-Za-z_][\w.]*=", argument)]
    paths = [Path(argument) for argument in arguments if argument not in overrides]
    if options := [argument for argument in arguments if argument.startswith("-")]:
        raise InputError(f"unknown option {options[0]}; values are given as key=value")
    return overrides, paths


def _config(arguments: list[str]) -> None:
    from simzss import config

    actions = ("show", "validate", "copy")
    if len(arguments) < 2 or arguments[0] not in actions or arguments[1] not in VERBS[:-1]:
        raise InputError(f"usage: simzss config show|validate|copy {'|'.join(VERBS[:-1])} [FILE] [key=value …]")
    action, root, rest = arguments[0], arguments[1], arguments[2:]
    if action == "copy":
        if not rest or "=" in rest[0]:
            raise InputError("usage: simzss config copy VERB FILE [key=value …]")
        target = Path(rest[0])
        if target.exists():
            raise InputError(f"{target} exists already")
        config.save(config.compose(config.root_of(root, rest), rest[1:]), target)
        print(target)
        return
    root = config.root_of(root, rest)
    composed = config.compose(root, rest)
    if action == "show":
        print(config.to_yaml(composed), end="")
    else:
        config.require_complete(composed)
        _validate(root, config.to_plain(composed))
        print("valid")


def _validate(root: str, plain: dict[str, Any]) -> None:
    if root == "report":
        from simzss.reports.compare import check_settings as check_comparison

        check_comparison(plain)
        return
    if root == "cache":
        from simzss.features.settings import check_settings as check_cache

        check_cache(plain)
        return
    from simzss.segmentation.protocol import Protocol

    if root == "train_masks":
        from simzss.training.mask_run import check_mask_settings

        check_mask_settings(plain)
        return
    if root == "train":
        Protocol(**plain["protocol"])
        from simzss.training.run import check_settings as check_training

        check_training(plain)
        return
    from simzss.segmentation.settings import check_settings as check_segmentation

    check_segmentation(plain)
    if root == "threshold":
        from simzss.evaluation.threshold import check_settings as check_search

        check_search(plain)
    elif root == "segment":
        from simzss.segmentation.background import Background

        Background(**plain["background"])


def _help(verb: str, overrides: list[str]) -> None:
    from simzss.config import help_text, root_of

    print(help_text(root_of(verb, overrides)))


if __name__ == "__main__":
    main()
