"""The folder of caption shards, which is a folder of resumable work (`simzss.tasks`).

shard-TTTTTT-PPP.tar   part PPP of task TTTTTT
index.json             all shards, once every task was tried
skipped.jsonl          every image and caption that was left out, and why
.tasks/                manifest settings.json, done markers, fingerprints of images
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simzss.atomic import read_record
from simzss.checksums import sha256_of
from simzss.tasks import TaskFolder

_RECORD = {"task", "stamp", "repeats", "shards"}


@dataclass(frozen=True)
class OutputFolder(TaskFolder):
    """Names in the output folder, and what its records say; usable from every process."""

    result_name = "shard"
    result_suffix = ".tar"
    manifest_name = "settings.json"
    lists = ("index.json", "skipped.jsonl")

    @property
    def skipped(self) -> Path:
        """Return the path of the list of what was left out."""
        return self.path / "skipped.jsonl"

    def shard(self, number: int, part: int) -> Path:
        """Return the path of a shard of a task."""
        return self.result(number, part)

    def shards(self, number: int) -> list[Path]:
        """Return the shards of a task that are there; its parts are numbered without a gap."""
        found: list[Path] = []
        while (path := self.shard(number, len(found))).exists():
            found.append(path)
        return found

    def dropped(self, number: int) -> Path:
        """Return the path of the list of what a task left out: apart, since a done marker is read often."""
        return self.tasks / f"{number:06d}.dropped.jsonl"

    def fingerprints(self, number: int) -> Path:
        """Return the path of the fingerprints of a task's images."""
        return self.tasks / f"{number:06d}.fingerprints.npz"

    def finished(self, number: int) -> dict[str, Any] | None:
        """Return the done marker of a task whose shards have their sizes and whose lists are as written, or None."""
        record = read_record(self.record(number))
        if record is None or not record.keys() >= _RECORD:
            return None
        lists = record.get("lists", self.sums(number))
        return record if lists == self.sums(number) and all(map(self._is_whole, record["shards"])) else None

    def sums(self, number: int) -> dict[str, str]:
        """Return the SHA-256 of the files beside the done marker of a task, by name."""
        files = (self.dropped(number), self.fingerprints(number))
        return {path.name: sha256_of(path) for path in files if path.is_file()}

    def numbers(self) -> set[int]:
        """Return the tasks of which a done marker or a shard is there."""
        return set(self.listing())

    def forget(self, number: int) -> None:
        """Remove all of a task, the done marker first."""
        self.remove([self.record(number), self.dropped(number), self.fingerprints(number), *self.shards(number)])

    def _is_whole(self, shard: dict[str, Any]) -> bool:
        try:
            return (self.path / shard["name"]).stat().st_size == shard["bytes"]
        except OSError:
            return False
