"""The program: arguments to settings, and a report at the end."""

import io
import sys
from dataclasses import fields
from typing import Any

from data_prep.captions.filters import Filters
from data_prep.captions.index import Summary
from data_prep.captions.prepare import prepare
from data_prep.captions.settings import CaptionsSettings, ExecutorSettings
from data_prep.captions.sources import SourceSettings
from simzss.config import compose, fill, help_text, nullable, require_complete, to_plain


def main() -> None:
    """Read arguments, prepare, report."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(help_text("captions", details=True))
        return
    optional = {"filters.": Filters, "executor.": ExecutorSettings, "": SourceSettings}
    config = compose("captions", arguments, {f"{p}{key}" for p, cls in optional.items() for key in nullable(cls)})
    require_complete(config)
    plain = to_plain(config)
    settings = fill(CaptionsSettings, _part(plain, CaptionsSettings))
    summary = prepare(
        settings,
        fill(SourceSettings, _part(plain, SourceSettings) | {"samples_per_task": settings.samples_per_shard}),
        fill(Filters, plain["filters"], "filters."),
        fill(ExecutorSettings, plain["executor"], "executor."),
    )
    _report(settings.output, summary)


def _report(output: str, summary: Summary) -> None:
    print(f"{output}: {summary.total('samples')} images, {summary.total('captions')} captions, "
          f"{summary.total('concepts')} concepts in {len(summary.shards)} shards")  # fmt: skip
    for kind, counts in (("images", summary.images), ("captions", summary.captions)):
        for reason, count in counts.most_common():
            print(f"left out: {count} {kind}: {reason}")
    if summary.first is not None:
        print(f"each is listed in {output}/skipped.jsonl")


def _part(plain: dict[str, Any], cls: type) -> dict[str, Any]:
    """The values of a composed configuration that a dataclass takes."""
    return {field.name: plain[field.name] for field in fields(cls) if field.name in plain}
