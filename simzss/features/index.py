"""The index of a folder of features: written when every shard was read, and checked when the features are opened."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simzss.atomic import read_json, write_json
from simzss.data.shards import Skipped
from simzss.errors import DataError
from simzss.features.files import FeatureFile, FileRecord, open_features
from simzss.features.folder import FeatureFolder, FinishedShard
from simzss.features.metadata import FORMAT_VERSION, FeatureMetadata

AGAIN = "run simzss cache again"
_NAMED = 3  # files that an error names


@dataclass(frozen=True)
class FeatureIndex:
    """Content of an index: what made the features, their files in order, and what could not be read."""

    metadata: FeatureMetadata
    files: list[FileRecord]
    skipped: tuple[Skipped, ...]


def write_index(folder: FeatureFolder, metadata: FeatureMetadata, shards: Sequence[FinishedShard]) -> None:
    """Write the index of finished shards."""
    index = {
        "facts": metadata.to_json(),
        "images": sum(shard.images for shard in shards),
        "complete": True,
        "files": [file.model_dump() for shard in shards for file in shard.files],
        "shards": [
            {"name": shard.shard, "bytes": shard.bytes, "sha256": shard.sha256, "images": shard.images}
            for shard in shards
        ],
        "skipped": [
            {"key": key, "reason": reason, "shard": shard.shard} for shard in shards for key, reason in shard.skipped
        ],
    }
    write_json(folder.index, index)


def read_index(folder: FeatureFolder) -> FeatureIndex:
    """Read an index, and compare the sizes of its files.

    Raises:
        DataError: no folder of features, an unfinished one, or files that are missing or not of their size.
    """
    path = folder.path
    if not path.is_dir():
        raise DataError(f"features {path} is no folder: make it with simzss cache")
    content = read_json(folder.index)
    if content is None and not folder.tasks.is_dir():
        raise DataError(f"features {path} holds no index.json: make it with simzss cache")
    if content is None:
        raise DataError(f"features {path} are not complete: {AGAIN}")
    try:
        if content["facts"]["version"] != FORMAT_VERSION:
            raise DataError(
                f"features {path} are of format {content['facts']['version']}, this program reads {FORMAT_VERSION}"
            )
        index = FeatureIndex(
            FeatureMetadata.model_validate(content["facts"]),
            [FileRecord.model_validate(record) for record in content["files"]],
            tuple(Skipped(entry["key"], entry["reason"], entry["shard"]) for entry in content["skipped"]),
        )
        complete = content["complete"] is True and len(index.files) > 0
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"features {path}: index.json is broken: {AGAIN}") from error
    if not complete:
        raise DataError(f"features {path} are not complete: {AGAIN}")
    wrong = [record.name for record in index.files if _size(path / record.name) != record.bytes]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        named = ", ".join(wrong[:_NAMED]) + more
        raise DataError(f"features {path}: missing or not of their size: {named}; {AGAIN}")
    return index


def open_indexed(path: Path, record: FileRecord, metadata: FeatureMetadata) -> FeatureFile:
    """Open a file of an index.

    Raises:
        DataError: it is broken, or its tensors are not those of the metadata.
    """
    file = open_features(path)
    shape = (record.images, metadata.views)
    wanted: dict[str, tuple[int, ...]] = {
        "cls": (*shape, metadata.width),
        "patches": (*shape, metadata.patches, metadata.width),
    }
    if metadata.storage == "int8":
        wanted["scale"] = (*shape, metadata.patches)
    found = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    if file.metadata.get("facts") != metadata.fingerprint or found != wanted or len(file.texts) != record.images:
        raise DataError(f"{path} is not the file of the index: remove it and {AGAIN}")
    return file


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
