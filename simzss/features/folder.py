"""The folder of cached features, which is a folder of resumable work (`simzss.tasks`); a task is a shard.

features-SSSSSS-CCC.safetensors   chunk CCC of shard SSSSSS
index.json                        list of all files, once every shard was read
.tasks/                           manifest facts.json; SSSSSS-CCC.json for each finished chunk; done marker SSSSSS.json
                                  for each finished shard
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from simzss.atomic import read_record, write_record
from simzss.features.files import FileRecord
from simzss.tasks import TaskFolder


class Chunk(BaseModel, frozen=True):
    """Record of a finished chunk: consecutive records of a shard, and the file of those that are images.

    Attributes:
        number: of the chunk.
        records: maximum number of records of a chunk.
        shard_sha256: of the tar.
        file: None where no record was a readable image.
        skipped: (key, reason) of the others.
    """

    number: int = Field(alias="part")
    records: int
    shard_sha256: str | None
    file: FileRecord | None
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FinishedShard:
    """Content of a shard's done marker: its tar, and all its chunks in order."""

    number: int
    shard: str
    bytes: int
    sha256: str | None
    chunks: tuple[Chunk, ...]

    @property
    def files(self) -> list[FileRecord]:
        """Return its files."""
        return [chunk.file for chunk in self.chunks if chunk.file is not None]

    @property
    def images(self) -> int:
        """Return the number of images of which there are features."""
        return sum(file.images for file in self.files)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Return (key, reason) of each record that is no readable image."""
        return [entry for chunk in self.chunks for entry in chunk.skipped]


@dataclass(frozen=True)
class FeatureFolder(TaskFolder):
    """Names in a folder of features, and what its records say; usable from every process."""

    result_name = "features"
    result_suffix = ".safetensors"
    manifest_name = "facts.json"

    @property
    def stop(self) -> Path:
        """Return the path of a file that a failing process leaves, for the others to end too."""
        return self.scratch / "stop"

    def chunk_record(self, number: int, chunk: int) -> Path:
        """Return the path of the record of a finished chunk."""
        return self.tasks / f"{number:06d}-{chunk:03d}.json"

    def read_chunk(self, number: int, chunk: int) -> Chunk | None:
        """Read the record of a finished chunk; None where it is missing or corrupt."""
        try:
            return Chunk.model_validate(read_record(self.chunk_record(number, chunk)))
        except ValueError:
            return None

    def finish_chunk(self, number: int, chunk: Chunk) -> None:
        """Leave the record of a chunk, whose file is written."""
        write_record(self.chunk_record(number, chunk.number), chunk.model_dump(mode="json", by_alias=True))

    def read_chunks(self, number: int, there: set[Path]) -> list[Chunk]:
        """Read all records of finished chunks of a shard, of which these files are there."""
        names = [path.stem.partition("-")[2] for path in there if path.parent == self.tasks]
        read = [self.read_chunk(number, chunk) for chunk in sorted(int(name) for name in names if name.isdigit())]
        return [chunk for chunk in read if chunk is not None]

    def finished(self, number: int) -> FinishedShard | None:
        """Read the done marker of a shard and the records of its chunks; None where one is missing or corrupt."""
        try:
            record = read_record(self.record(number))
            if record is None:
                return None
            read = [self.read_chunk(number, chunk) for chunk in range(record["parts"])]
            chunks = tuple(chunk for chunk in read if chunk is not None)
            if len(chunks) < len(read):
                return None
            return FinishedShard(number, str(record["shard"]), int(record["bytes"]), str(record["sha256"]), chunks)
        except (KeyError, TypeError, ValueError):
            return None

    def finish(self, shard: FinishedShard) -> None:
        """Leave the done marker of a shard, whose chunks have their records."""
        record = {"shard": shard.shard, "bytes": shard.bytes, "sha256": shard.sha256, "parts": len(shard.chunks)}
        write_record(self.record(shard.number), record)
