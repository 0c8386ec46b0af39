"""`simzss cache`: the features of a frozen backbone for all images of the shards, to a folder, once.

Whatever happens on the way, the folder ends with the bytes of an undisturbed run: each file is written whole or not at
all, what is finished is found again by its records, and which images share a file or a block does not depend on the
number of processes or workers.
"""

import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from simzss import config as conf
from simzss.atomic import write_json
from simzss.data.shards import Skipped, count_samples, expand_shards, read_indexes, unfinished
from simzss.device import best_device, resolve_precision
from simzss.distributed import failing_together, gather_values, process_group, rank, world_size
from simzss.errors import InputError
from simzss.features.blocks import ShardEnd, Task, ViewBlock, ViewBlocks, view_loader
from simzss.features.files import FileRecord, is_intact
from simzss.features.folder import CacheFolder, Stamp, opened, writing
from simzss.features.metadata import CacheFacts, facts_of
from simzss.features.quantise import bytes_per_image, pack
from simzss.features.settings import CacheSettings, check_settings
from simzss.features.views import Views
from simzss.features.writer import Computed, PartWriter, hash_shard, shard_size
from simzss.models.backbone.base import Backbone, with_proxy
from simzss.training.data.batch import summarise_skipped

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheSummary:
    """A finished cache: what it holds, and the seconds that this run took."""

    folder: Path
    images: int
    bytes: int
    seconds: float
    skipped: tuple[Skipped, ...]


def run_cache(config: DictConfig) -> CacheSummary:
    """Make the cache that is configured, in this process or in those that torchrun or srun started.

    Raises:
        InputError: anything wrong with the configuration, the shards, the backbone or the folder.
    """
    conf.require_complete(config)
    plain: dict[str, Any] = conf.to_plain(config)
    settings = check_settings(plain)
    with process_group():
        device = torch.device("cpu") if plain["accelerator"] == "cpu" else best_device()
        with failing_together():
            urls = expand_shards(plain["data"]["shards"])
            backbone = build_backbone(with_proxy(plain["backbone"], plain["proxy"]), plain["seed"])
            precision = resolve_precision(plain["precision"], device)
        return build_cache(backbone, urls, Path(plain["output"]), settings, device, precision)


def build_backbone(options: Mapping[str, Any], seed: int) -> Backbone:
    """The backbone of a configuration; untrained weights are those of a training run with this seed."""
    torch.manual_seed(seed)
    return Backbone(**{key: value for key, value in options.items() if key != "feature_norm"})


def build_cache(
    backbone: Backbone,
    urls: Sequence[str],
    output: Path,
    settings: CacheSettings,
    device: torch.device,
    precision: str,
) -> CacheSummary:
    """Make the cache, or what is missing of it; all processes of the group call this, and share the work.

    Args:
        backbone: goes to the device, in this precision.
        urls: shards, the same on all processes.
        output: the folder, seen by all of them.
        settings: how.
        device: where the backbone runs.
        precision: resolved arithmetic.

    Raises:
        InputError: on all processes: the folder holds something else, a shard has changed, the disk is full, or there
            is no readable image.
    """
    began = time.monotonic()
    if rank() == 0 and (incomplete := unfinished(read_indexes(urls))):
        log.warning("%s", incomplete)
    with ExitStack() as stack:
        with failing_together():
            backbone.to(device).use_precision(precision)
            views = Views(backbone.image_size, settings.views, settings.min_crop, settings.seed)
            size = backbone.image_size
            grid = backbone(torch.zeros(1, 3, size, size, device=device)).grid
            facts = facts_of(backbone, views, settings.storage, precision, grid)
            folder = stack.enter_context(opened(output, facts)) if rank() == 0 else CacheFolder(output.absolute())
        _require_same_view(folder, urls, facts)
        run = _Run(backbone, urls, folder, facts, views, settings, device)
        with failing_together(), writing(folder.path):
            found = run.check()
        stamps: dict[int, Stamp] = {}
        kept: dict[int, frozenset[int]] = {}
        for share in gather_values(found):
            stamps |= share.stamps
            kept |= share.parts
        todo = [number for number in range(len(urls)) if number not in stamps]
        if stamps and rank() == 0:
            log.info("%d of %d shards are finished already", len(stamps), len(urls))
        with failing_together():
            if todo and rank() == 0:
                with writing(folder.index):
                    folder.index.unlink(missing_ok=True)  # before it is no longer true
            with _stopping_others(folder):
                mine = run.make([Task(number, urls[number], kept[number]) for number in todo[rank() :: world_size()]])
        for made in gather_values(mine):
            stamps |= made
        with failing_together():
            if not any(stamp.images for stamp in stamps.values()):
                raise InputError("no readable image in data.shards")
            if rank() == 0:
                _write_index(folder, facts, [stamps[number] for number in sorted(stamps)])
    return _summary(folder, stamps, time.monotonic() - began)


def _require_same_view(folder: CacheFolder, urls: Sequence[str], facts: CacheFacts) -> None:
    """Every process must see the folder, the same shards and the same backbone.

    Raises:
        InputError: on all processes; names one that does not.
    """
    shards = [(Path(url).name, shard_size(url)) for url in urls]
    seen = gather_values((platform.node(), folder.facts.exists(), shards, facts.digest))
    for other, (node, sees, there, digest) in enumerate(seen):
        if not sees:
            raise InputError(f"output={folder.path} is not the same folder for process {other} on {node}")
        if there != seen[0][2]:
            raise InputError(
                f"data.shards: process {other} on {node} sees other shards ({len(there)}) than process 0 on "
                f"{seen[0][0]} ({len(seen[0][2])}): every machine needs the same files"
            )
        if digest != seen[0][3]:
            raise InputError(f"backbone: process {other} on {node} makes other features than process 0 on {seen[0][0]}")


@contextmanager
def _stopping_others(folder: CacheFolder) -> Iterator[None]:
    """Let the other processes know of an error: they would wait longer for this one than a collective does."""
    try:
        yield
    except BaseException:
        if world_size() > 1:
            with suppress(OSError):
                folder.stop.touch()
        raise


@dataclass
class _Found:
    """What is finished of some shards: the stamps of some, and the numbers of the parts of the others."""

    stamps: dict[int, Stamp] = field(default_factory=dict)
    parts: dict[int, frozenset[int]] = field(default_factory=dict)


@dataclass
class _Run:
    """One process's share of a cache in the making."""

    backbone: Backbone
    urls: Sequence[str]
    folder: CacheFolder
    facts: CacheFacts
    views: Views
    settings: CacheSettings
    device: torch.device

    @property
    def part_size(self) -> int:
        """Records of a part: so many that the features of all of them fit into a file."""
        one = bytes_per_image(self.facts.storage, self.facts.views, self.facts.patches, self.facts.width)
        return max(1, int(self.settings.file_mb * 1e6 / one))

    def check(self) -> _Found:
        """What is finished of this process's share of all shards; what is not whole any more is removed.

        Raises:
            InputError: a shard is not the one whose features are there.
        """
        there = self.folder.listing()
        if max(there, default=0) >= len(self.urls):
            raise InputError(
                f"output={self.folder.path} holds features of {max(there) + 1} shards, data.shards gives "
                f"{len(self.urls)}: give all of them, or another output="
            )
        found = _Found()
        numbers = range(rank(), len(self.urls), world_size())
        with ThreadPoolExecutor(4) as pool:
            checked = pool.map(lambda number: self._check_shard(number, there.get(number, set())), numbers)
            for number, (stamp, parts) in zip(numbers, checked, strict=True):
                if stamp is not None:
                    found.stamps[number] = stamp
                else:
                    found.parts[number] = parts
        return found

    def _check_shard(self, number: int, there: set[Path]) -> tuple[Stamp | None, frozenset[int]]:
        """Its stamp when the shard is finished, and which of its parts are; the rest of what is there is removed."""
        folder, url = self.folder, self.urls[number]
        stamp = folder.finished(number)
        names = [path.stem.partition("-")[2] for path in there if path.parent == folder.tasks]
        read = [folder.read_part(number, part) for part in sorted(int(name) for name in names if name.isdigit())]
        parts = [part for part in read if part is not None]
        if parts and (sha256 := hash_shard(url)) != parts[0].shard_sha256:
            what = "cannot be read, and" if sha256 is None else "is not the shard whose features"
            raise InputError(
                f"{url} {what} {folder.path} holds{' features of it' if sha256 is None else f' as number {number}'}: "
                "remove that folder, or give another output="
            )
        whole = [part for part in parts if self._is_whole(part.file)]
        if stamp is not None and len(whole) == len(parts) == len(stamp.parts):
            return stamp, frozenset()
        kept = [part for part in whole if part.records == self.part_size]
        staying = {folder.part(number, part.number) for part in kept}
        staying |= {folder.path / part.file.name for part in kept if part.file is not None}
        # The stamp first, which vouches for all, then the records, which vouch for the files.
        for path in sorted(
            there - staying, key=lambda path: (path.parent != folder.tasks, path.name != f"{number:06d}.json")
        ):
            path.unlink()
        return None, frozenset(part.number for part in kept)

    def _is_whole(self, file: FileRecord | None) -> bool:
        """Whether a file is as it was written; says so where it is not. No file is whole."""
        if file is None:
            return True
        path = self.folder.path / file.name
        intact = is_intact(path, file.bytes, file.sha256)
        if not intact:
            reason = "is missing or of another size" if intact is None else "is corrupted (its SHA-256 has changed)"
            log.warning("%s %s: it is made again", path, reason)
        return bool(intact)

    def make(self, tasks: Sequence[Task]) -> dict[int, Stamp]:
        """Make the features of some shards; returns their stamps by number.

        Raises:
            InputError: a file cannot be written; what is finished stays.
        """
        if not tasks:
            return {}
        samples = count_samples([task.url for task in tasks])
        samples = max(0, samples - self.part_size * sum(len(task.kept) for task in tasks))
        _say("features of %d images with %s (%s, %s, %d x %d patches, views: %d)", samples, self.backbone.name,
             self.facts.precision, self.facts.storage, *self.facts.grid, self.facts.views)  # fmt: skip
        dataset = ViewBlocks(tasks, self.views, self.part_size, self.settings.block_size(self.device))
        accelerated = self.device.type != "cpu"
        # Its workers are forked before there is a thread.
        blocks: Iterator[ViewBlock | ShardEnd] = iter(view_loader(dataset, self.settings.num_workers, accelerated))
        progress = _Progress(samples)
        with PartWriter(self.folder, self.facts, self.part_size, tasks) as writer:
            # A block is stored while the device works on the next one.
            before: Computed | ShardEnd | None = None
            for block in blocks:
                computed = block if isinstance(block, ShardEnd) else self._compute(block)
                if before is not None:
                    progress.add(writer.take(before))
                before = computed
            if before is not None:
                progress.add(writer.take(before))
            return writer.stamps()

    def _compute(self, block: ViewBlock) -> "Computed":
        """The packed features of a block, on their way to the host."""
        if not block.texts:
            return Computed(block, {}, None)
        images = block.images.to(self.device, non_blocking=True)
        packed = [pack(self.backbone(view), self.facts.storage) for view in images]
        tensors = {name: torch.stack([view[name] for view in packed], dim=1) for name in packed[0]}
        if self.device.type == "cpu":
            return Computed(block, tensors, None)
        host = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        return Computed(block, host, torch.accelerator.current_stream(self.device).record_event())


class _Progress:
    """Says each tenth of a process's images as it is passed, with the speed so far."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._next = total / 10
        self._began = time.monotonic()

    def add(self, records: int) -> None:
        self._done += records
        if self._done >= self._next > 0:
            whose = f"process 0 of {world_size()}: " if world_size() > 1 else ""
            _say("%s%d of %d images, %.1f images/s", whose, self._done, self._total, self._speed())
            self._next = (self._done // (self._total / 10) + 1) * self._total / 10

    def _speed(self) -> float:
        return self._done / max(time.monotonic() - self._began, 1e-9)


def _write_index(folder: CacheFolder, facts: CacheFacts, stamps: Sequence[Stamp]) -> None:
    files = [file.to_json() for stamp in stamps for file in stamp.files]
    index = {
        "facts": facts.to_json(),
        "images": sum(stamp.images for stamp in stamps),
        "complete": True,
        "files": files,
        "shards": [
            {"name": stamp.shard, "bytes": stamp.bytes, "sha256": stamp.sha256, "images": stamp.images}
            for stamp in stamps
        ],
        "skipped": [
            {"key": key, "reason": reason, "shard": stamp.shard} for stamp in stamps for key, reason in stamp.skipped
        ],
    }
    with writing(folder.index):
        write_json(folder.index, index)


def _summary(folder: CacheFolder, stamps: Mapping[int, Stamp], seconds: float) -> CacheSummary:
    """The end of a run, said and returned."""
    skipped = tuple(
        Skipped(key, reason, stamp.shard) for _, stamp in sorted(stamps.items()) for key, reason in stamp.skipped
    )
    images = sum(stamp.images for stamp in stamps.values())
    size = sum(file.bytes for stamp in stamps.values() for file in stamp.files)
    if skipped and rank() == 0:
        log.warning("%s", summarise_skipped(skipped))
    _say("features of %d images, %.1f MB, in %.1f s: %s", images, size / 1e6, seconds, folder.path)
    return CacheSummary(folder.path, images, size, seconds, skipped)


def _say(text: str, *values: object) -> None:
    if rank() == 0:
        log.info(text, *values)
