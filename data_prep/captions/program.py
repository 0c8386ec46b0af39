"""Prepare captions: arguments to settings, and a report at the end."""

import io
import sys

from simzss.program import interruptible
from simzss.settings.program import parse

from .index import Summary
from .settings import CaptionsSettings


def main(arguments: list[str] | None = None) -> None:
    """Read arguments (default: of the command line), prepare, report."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    settings = parse(CaptionsSettings, arguments, "captions")
    from .prepare import prepare  # the libraries that --help does without

    with interruptible("the same command goes on"):
        summary = prepare(settings)
    _report(settings, summary)


def _report(settings: CaptionsSettings, summary: Summary) -> None:
    print(f"{settings.output}: {summary.total('samples')} images, {summary.total('captions')} captions, "
          f"{summary.total('concepts')} concepts in {len(summary.shards)} shards")  # fmt: skip
    for kind, counts in (("images", summary.images), ("captions", summary.captions)):
        for reason, count in counts.most_common():
            print(f"left out: {count} {kind}: {reason}")
    if summary.first is not None:
        print(f"each is listed in {settings.output / 'skipped.jsonl'}")
