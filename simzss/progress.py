"""Progress of long loops: a bar on a terminal, one line every ten seconds in a log file."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

Item = TypeVar("Item")
SECONDS = 10.0
"""Seconds between two lines of a log."""
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"
_LINE_OF_UNKNOWN = "{desc}: {n_fmt}, {rate_noinv_fmt}{postfix}"


class Bar(tqdm):
    """A tqdm bar, or lines in the log where stderr is no terminal; silent where INFO is not logged.

    Args:
        total: number of steps; None: unknown.
        description: in front.
        unit: of a step, such as images.
        initial: steps that are done already.
        hidden: show nothing.
    """

    monitor_interval = 0  # no thread: processes are forked while a bar is shown

    def __init__(
        self, total: int | None, description: str, unit: str = "it", *, initial: int = 0, hidden: bool = False
    ) -> None:
        options: dict[str, Any] = {"total": total, "desc": description, "unit": f" {unit}", "initial": initial}
        if sys.stderr.isatty():
            options |= {} if total is None else {"bar_format": _BAR}
        else:
            options |= {"file": _LogFile(), "mininterval": SECONDS, "maxinterval": SECONDS, "delay": SECONDS}
            options |= {"bar_format": _LINE_OF_UNKNOWN if total is None else _LINE, "leave": False}
        super().__init__(disable=hidden or not log.isEnabledFor(logging.INFO), miniters=1, smoothing=0.05, **options)

    @property
    def due(self) -> bool:
        """Tell whether the next update is shown: what it shows need not be computed otherwise."""
        return not self.disable and self._time() - self.last_print_t >= self.mininterval


class _LogFile:
    """The file that tqdm writes to: its lines become records of the log."""

    def write(self, text: str) -> None:
        if line := " ".join(text.split()):
            log.info("%s", line)

    def flush(self) -> None:
        pass


def progress(
    iterable: Iterable[Item],
    total: int | None,
    description: str,
    unit: str = "images",
    count: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Item]:
    """Yield the items of an iterable and show how much is done, the rate and the time left.

    Args:
        iterable: the items.
        total: of all counts; None: unknown.
        description: in front.
        unit: of a count.
        count: of one item, added when the next one is asked for.
    """
    with Bar(total, description, unit) as bar:
        for item in iterable:
            yield item
            bar.update(count(item))
