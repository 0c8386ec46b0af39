"""The `simzss` command: a verb and its overrides become settings, and one function runs with them."""

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simzss import __version__
from simzss.errors import ConfigError, nearest, printable
from simzss.program import run_program

NOISY = ("httpx", "httpcore", "huggingface_hub", "timm", "PIL", "fsspec", "urllib3")
"""Loggers of libraries whose warnings are not for our users."""


def main(arguments: list[str] | None = None) -> None:
    """Run the console script with arguments, default those of the command line."""
    run_program(lambda: dispatch(sys.argv[1:] if arguments is None else arguments))


def run_module(program: Callable[[], None]) -> None:
    """Run a program as `python -m` does, with messages and errors as the `simzss` command has them."""
    _start_logging()
    run_program(program)


class _Printable(logging.Formatter):
    """Shows control characters of names, which could steer the terminal, as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        return "\n".join(line if line.isprintable() else printable(line) for line in lines)


def _start_logging() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("simzss", "data_prep", "__main__"):  # ours alone: no library speaks at INFO
        logging.getLogger(name).setLevel(logging.INFO if is_first_rank() else logging.WARNING)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def dispatch(arguments: list[str]) -> None:
    """Run one verb.

    Raises:
        InputError: unknown verb or bad arguments.
    """
    from simzss.commands.verbs import VERBS

    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return
    if arguments[0] == "--version":
        print(__version__)
        return
    verb, rest = arguments[0], arguments[1:]
    if verb not in (known := (*VERBS, "config", "prep")):
        raise ConfigError(f"unknown verb {verb!r}; {nearest(verb, known)}")
    _start_logging()
    if verb == "prep":
        from simzss.commands.prep import run

        run(rest)
        return
    from simzss.settings.compose import user_presets
    from simzss.settings.program import split_sources

    rest, config, conf_dir = split_sources(rest)
    with user_presets(conf_dir):
        _dispatch(verb, rest, config)


def _dispatch(verb: str, rest: list[str], config: str | None) -> None:
    from simzss.commands.verbs import VERBS, settings_of, training_verb
    from simzss.settings.help import help_text

    asks_help = bool({"-h", "--help"} & set(rest))
    if verb == "config":
        from simzss.commands.config import run

        print(_help() if asks_help else run(rest, config))
        return
    overrides, paths = _divided([argument for argument in rest if argument not in ("-h", "--help")])
    if verb == "train" and (verb := training_verb(overrides)) != "train":
        logging.getLogger(__name__).warning("training with masks is now: simzss train-masks")
    if asks_help:
        print(help_text(verb, VERBS[verb].cls))
        return
    if paths and verb not in ("segment", "report"):
        raise ConfigError(f"{str(paths[0])!r} is not of the form key=value")
    settings = settings_of(verb, overrides, config)
    _SAY.get(verb, _print)(VERBS[verb].run, settings, paths)


def is_first_rank() -> bool:
    """Tell whether this process, of those that torchrun or srun started, is the one that speaks."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _help() -> str:
    from simzss.commands.verbs import VERBS

    lines = [f"simzss {__version__}: an open vocabulary for any frozen vision backbone", "", "usage:"]
    lines += [f"  simzss {name:<11} {verb.usage} [key=value …]\n{'':20}{verb.about}" for name, verb in VERBS.items()]
    lines += [
        "  simzss config      show|validate|copy VERB [FILE] [key=value …]\n" + " " * 20 + "what a verb would run with",
        "  simzss prep        PROGRAM [key=value …]\n"
        + " " * 20
        + "captions, concept banks, benchmark layouts, scenes",
        "  simzss VERB --help\n" + " " * 20 + "a verb's keys and choices",
        "",
        "Every key can be set as key=value; a group such as backbone=NAME is exchanged by its name.",
        "config=FILE starts from a file that `simzss config copy` wrote; conf_dir=DIR holds presets of your own.",
    ]
    return "\n".join(lines)


def _divided(arguments: list[str]) -> tuple[list[str], list[Path]]:
    """Overrides and paths. An override begins with a key; a path whose name does too is given as ./name."""
    overrides = [argument for argument in arguments if re.match(r"[A-Za-z_][\w.]*=", argument)]
    paths = [Path(argument) for argument in arguments if argument not in overrides]
    if options := [argument for argument in arguments if argument.startswith("-")]:
        raise ConfigError(f"unknown option {options[0]}; values are given as key=value")
    return overrides, paths


# ----------------------------------------------------------------------------------------- what each verb prints


def _print(run: Callable[..., Any], settings: Any, paths: list[Path]) -> None:
    """Print what a verb returns that has no words of its own below."""
    result = run(settings)
    if is_first_rank() and result is not None:
        print(result)


def _train(run: Callable[..., Any], settings: Any, paths: list[Path]) -> None:
    from simzss.distributed import destroy_process_group

    folder = run(settings)
    if is_first_rank():
        print(f"model: {shown_path(folder)}")
    destroy_process_group()


def _cache(run: Callable[..., Any], settings: Any, paths: list[Path]) -> None:
    summary = run(settings)
    if is_first_rank():
        skipped = f", {len(summary.skipped)} skipped" if summary.skipped else ""
        print(f"features: {shown_path(summary.folder)} ({summary.images} images{skipped})")


def _eval(run: Callable[..., Any], settings: Any, paths: list[Path]) -> None:
    results = run(settings)
    if is_first_rank():
        for name, result in results.items():
            print(f"{printable(name)}: {summary_line(result)}")


def _segment(run: Callable[..., Any], settings: Any, paths: list[Path]) -> None:
    for path in run(settings, paths):
        print(shown_path(path))


def _report(run: Callable[..., Any], settings: Any, paths: list[Path]) -> None:
    for item in run(settings, paths).differences:
        print(
            f"{shown_path(item.run)}  {printable(item.benchmark)} ({item.names} names): {item.difference:+.2f} "
            f"[{item.low:+.2f}, {item.high:+.2f}]  ({item.images} images)"
        )
    print(shown_path(settings.output_dir / "comparison.html"))


def _threshold(run: Callable[..., Any], settings: Any, paths: list[Path]) -> None:
    found = run(settings)
    if not is_first_rank():
        return
    images, scores = found["images"], found["mIoU"]
    before = "" if found["mIoU_configured"] is None else f" ({found['mIoU_configured']:.2f} with the present one)"
    print(
        f"threshold {found['threshold']}: mIoU {scores['chosen on']:.2f} on {images['chosen on']} images, "
        f"{scores['checked on']:.2f}{before} on the {images['checked on']} others"
    )


_SAY: dict[str, Callable[[Callable[..., Any], Any, list[Path]], None]] = {
    "train": _train,
    "train-masks": _train,
    "cache": _cache,
    "eval": _eval,
    "segment": _segment,
    "report": _report,
    "threshold": _threshold,
}


def shown_path(path: Path | str) -> str:
    """Return a path as it is, spaces and all, but for control characters, which could steer the terminal."""
    text = str(path)
    return text if text.isprintable() else printable(text)


def summary_line(result: dict[str, Any]) -> str:
    """Return a result of an evaluation on one line."""
    if "missing" in result:
        return f"not measured: {printable(result['missing'])}"
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


if __name__ == "__main__":
    main()
