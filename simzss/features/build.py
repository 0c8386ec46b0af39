"""Computing the features of a frozen backbone for all images of shards, to a folder, once.

Whatever happens on the way, the folder ends with the bytes of an undisturbed run: each file is written atomically, what
is finished is found again by its records, and which images share a file or a block does not depend on the number of
processes or workers.
"""

import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from simzss.data.index import find_listed, read_indexes, require_sizes, unfinished
from simzss.data.shards import Skipped, count_samples, summarise_skipped
from simzss.distributed import gather_values, raise_on_all_ranks, rank, world_size
from simzss.errors import DataError
from simzss.features.blocks import ShardEnd, ShardTask, ViewBlock, ViewBlocks, view_loader
from simzss.features.folder import FeatureFolder, FinishedShard
from simzss.features.index import write_index
from simzss.features.metadata import FeatureMetadata
from simzss.features.quantise import bytes_per_image, pack
from simzss.features.resume import find_finished
from simzss.features.settings import FeatureSettings
from simzss.features.views import Views
from simzss.features.writer import ChunkWriter, ComputedBlock
from simzss.models.backbone.base import Backbone
from simzss.progress import Bar
from simzss.tasks import describing_os_errors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheSummary:
    """A finished cache: what it holds, and the seconds that this run took."""

    folder: Path
    images: int
    bytes: int
    seconds: float
    skipped: tuple[Skipped, ...]


def build_cache(
    backbone: Backbone,
    urls: Sequence[str],
    output: Path,
    settings: FeatureSettings,
    device: torch.device,
    precision: str,
) -> CacheSummary:
    """Compute all features, or those that are missing; all processes of the group call this, and share the work.

    Args:
        backbone: is moved to the device, in this precision.
        urls: shards, the same on all processes.
        output: the folder, seen by all of them.
        settings: how features are computed and stored.
        device: for the backbone.
        precision: resolved arithmetic.

    Raises:
        InputError: on all processes: the folder holds something else, a shard has changed or is not what its index.json
            says, the disk is full, or there is no readable image.
    """
    began = time.monotonic()
    if rank() == 0 and (incomplete := unfinished(read_indexes(urls))):
        log.warning("%s", incomplete)
    tasks = [ShardTask(number, url, listed=find_listed(url)) for number, url in enumerate(urls)]
    with ExitStack() as stack:
        with raise_on_all_ranks():
            require_sizes(urls)
            backbone.to(device).use_precision(precision)
            size = backbone.image_size
            views = Views(size, settings.views, settings.min_crop, settings.seed)
            grid = backbone(torch.zeros(1, 3, size, size, device=device)).grid
            metadata = FeatureMetadata.of(backbone, views, settings.storage, precision, grid)
            folder = FeatureFolder(output.absolute())
            if rank() == 0:
                stack.enter_context(FeatureFolder.open(output, metadata.to_json()))
        _require_same_view(folder, tasks, metadata)
        one = bytes_per_image(metadata.storage, metadata.views, metadata.patches, metadata.width)
        chunk_size = max(1, int(settings.file_mb * 1e6 / one))
        found = find_finished(folder, tasks, chunk_size)
        shards = dict(found.shards)
        if shards:
            _log("%d of %d shards are finished already", len(shards), len(tasks))
        todo = [replace(task, finished=found.chunks[task.number]) for task in tasks if task.number not in shards]
        with raise_on_all_ranks(), describing_os_errors(folder.path), _stopping_others(folder):
            if todo and rank() == 0:
                folder.forget_index()  # before it is no longer true
            computer = _Computer(backbone, folder, metadata, views, settings, device, chunk_size)
            mine = computer.make(todo[rank() :: world_size()])
        for made in gather_values(mine):
            shards |= made
        ordered = [shards[number] for number in sorted(shards)]
        with raise_on_all_ranks(), describing_os_errors(folder.index):
            if not any(shard.images for shard in ordered):
                raise DataError("no readable image in data.shards")
            if rank() == 0:
                write_index(folder, metadata, ordered)
    return _summarise(folder, ordered, time.monotonic() - began)


def _require_same_view(folder: FeatureFolder, tasks: Sequence[ShardTask], metadata: FeatureMetadata) -> None:
    """Check that every process sees the folder, the same shards and the same backbone.

    Raises:
        DataError: on all processes; names one that does not.
    """
    shards = [(task.shard, task.size()) for task in tasks]
    seen = gather_values((platform.node(), folder.manifest.exists(), shards, metadata.fingerprint))
    for other, (node, sees, there, fingerprint) in enumerate(seen):
        if not sees:
            raise DataError(f"output={folder.path} is not the same folder for process {other} on {node}")
        if there != seen[0][2]:
            raise DataError(
                f"data.shards: process {other} on {node} sees other shards ({len(there)}) than process 0 on "
                f"{seen[0][0]} ({len(seen[0][2])}): every machine needs the same files"
            )
        if fingerprint != seen[0][3]:
            raise DataError(f"backbone: process {other} on {node} makes other features than process 0 on {seen[0][0]}")


@contextmanager
def _stopping_others(folder: FeatureFolder) -> Iterator[None]:
    """Let the other processes know of an error: they would wait longer for this one than a collective does."""
    try:
        yield
    except BaseException:
        if world_size() > 1:
            with suppress(OSError):
                folder.stop.touch()
        raise


@dataclass
class _Computer:
    """Runs the backbone over this process's share of the shards."""

    backbone: Backbone
    folder: FeatureFolder
    metadata: FeatureMetadata
    views: Views
    settings: FeatureSettings
    device: torch.device
    chunk_size: int

    def make(self, tasks: Sequence[ShardTask]) -> Mapping[int, FinishedShard]:
        """Compute and write the features of some shards; returns them by number.

        Raises:
            OSError: a file cannot be written; what is finished stays.
        """
        if not tasks:
            return {}
        samples = count_samples([task.url for task in tasks])
        samples = max(0, samples - self.chunk_size * sum(len(task.finished) for task in tasks))
        _log("features of %d images with %s (%s, %s, %d x %d patches, views: %d)", samples, self.backbone.name,
             self.metadata.precision, self.metadata.storage, *self.metadata.grid, self.metadata.views)  # fmt: skip
        dataset = ViewBlocks(tasks, self.views, self.chunk_size, self.settings.block_size(self.device.type))
        # Its workers are forked before there is a thread.
        blocks: Iterator[ViewBlock | ShardEnd] = iter(
            view_loader(dataset, self.settings.num_workers, pin=self.device.type != "cpu")
        )
        hidden, share = rank() > 0, f" of process 0 of {world_size()}" if world_size() > 1 else ""
        with (
            Bar(samples, f"features{share}", "images", hidden=hidden) as bar,
            ChunkWriter(self.folder, self.metadata, self.chunk_size, tasks) as writer,
        ):
            # A block is stored while the device works on the next one.
            before: ComputedBlock | ShardEnd | None = None
            for block in blocks:
                computed = block if isinstance(block, ShardEnd) else self._compute(block)
                if before is not None:
                    bar.update(writer.take(before))
                before = computed
            if before is not None:
                bar.update(writer.take(before))
            return writer.finished()

    def _compute(self, block: ViewBlock) -> ComputedBlock:
        """Start to compute the packed features of a block and to copy them to the host."""
        if not block.texts:
            return ComputedBlock(block, {}, None)
        images = block.images.to(self.device, non_blocking=True)
        packed = [pack(self.backbone(view), self.metadata.storage) for view in images]
        tensors = {name: torch.stack([view[name] for view in packed], dim=1) for name in packed[0]}
        if self.device.type == "cpu":
            return ComputedBlock(block, tensors, None)
        host = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        return ComputedBlock(block, host, torch.accelerator.current_stream(self.device).record_event())


def _summarise(folder: FeatureFolder, shards: Sequence[FinishedShard], seconds: float) -> CacheSummary:
    """Log and return the summary."""
    skipped = tuple(Skipped(key, reason, shard.shard) for shard in shards for key, reason in shard.skipped)
    images = sum(shard.images for shard in shards)
    size = sum(file.bytes for shard in shards for file in shard.files)
    if skipped and rank() == 0:
        log.warning("%s", summarise_skipped(skipped))
    _log("features of %d images, %.1f MB, in %.1f s: %s", images, size / 1e6, seconds, folder.path)
    return CacheSummary(folder.path, images, size, seconds, skipped)


def _log(text: str, *values: object) -> None:
    """Log on the first process alone."""
    if rank() == 0:
        log.info(text, *values)
