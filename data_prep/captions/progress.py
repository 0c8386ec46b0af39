"""How far a run is, at which rate, and how long it will take: a line now and then, which a log can keep."""

import sys
import time

_INTERVAL = 10.0  # seconds between lines


class Progress:
    """Counts tasks and captions, and prints lines to stderr.

    Args:
        what: is done, for the line.
        tasks: to be done in this run.
        unit: in the plural, for the line.
    """

    def __init__(self, what: str, tasks: int, unit: str = "tasks") -> None:
        self.what = what
        self.tasks = tasks
        self.unit = unit
        self.done = 0
        self.captions = 0
        self._start = self._printed = time.monotonic()

    def add(self, captions: int = 0) -> None:
        """One more has ended, done or failed."""
        self.done += 1
        self.captions += captions
        now = time.monotonic()
        if now - self._printed >= _INTERVAL or self.done == self.tasks:
            self._printed = now
            print(self.line(now - self._start), file=sys.stderr)

    def line(self, seconds: float) -> str:
        """The line after so many seconds."""
        rate = f", {self.captions / seconds:,.0f} captions/s" if self.captions and seconds > 0 else ""
        left = seconds / self.done * (self.tasks - self.done) if self.done else 0
        ends = f", {_duration(left)} left" if self.done < self.tasks else f" in {_duration(seconds)}"
        captions = f", {self.captions:,} captions" if self.captions else ""
        return f"{self.what}: {self.done} of {self.tasks} {self.unit}{captions}{rate}{ends}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
