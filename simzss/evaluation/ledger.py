"""What is finished of a measurement, some photos at a time: a run that was stopped goes on where it was.

output_dir/.progress/KEY/000012.part   photos that went through the model together, the first of which was number 12

KEY is a hash of all that results depend on besides the photos. A part is the SHA-256 of its rest, and a safetensors
file. Runs with other settings leave each other's parts alone; a run that ends removes them all.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from simzss import __version__
from simzss.atomic import PARTIAL, atomic_write
from simzss.checksums import sha256_of
from simzss.distributed import raise_on_all_ranks, rank
from simzss.errors import printable
from simzss.models.fingerprint import fingerprint
from simzss.models.simzss import SimZSS
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.prompts import templates
from simzss.segmentation.refine.base import Counts
from simzss.segmentation.segmenter import Segmenter
from simzss.tasks import hold_folder

log = logging.getLogger(__name__)

HINT = "the same command goes on"
"""What an interrupt of a measurement says."""

_WRITTEN = (".results.*", ".report.*", ".threshold.*", ".*_overlay.*", ".*_mask.*", "counts/**/.*", "masks/**/.*")
_DIGITS = 64  # of a SHA-256 in hexadecimal
_REGIONS = "regions."  # before the names of their statistics
_SEPARATOR = "|"  # between the place of a photo in a part and the name of a tensor

Stamp = list[list[int] | None]
"""Size and time of change of each file that a photo was measured from."""


@dataclass(frozen=True)
class Entry:
    """What is kept of a photo.

    Attributes:
        tensors: on the CPU, by name.
        note: plain JSON value.
        files: that were written for it.
    """

    tensors: dict[str, Tensor]
    note: Any = None
    files: tuple[Path, ...] = ()


class Records:
    """Entries of the photos of one measurement, by name."""

    def __init__(self, output: Path, folder: Path) -> None:
        self.output = output
        self.folder = folder

    def find(self, stamps: Mapping[str, Stamp]) -> dict[str, Entry]:
        """Return the entries of photos, by name, that have these stamps and whose files are as they were written."""
        found = {}
        for path in sorted(self.folder.glob("*.part")):
            for name, stamp, note, files, tensors in _read(path):
                written = tuple(self.output / file for file in files)
                if stamps.get(name) == stamp and list(map(_digest, written)) == list(files.values()):
                    found[name] = Entry(tensors, note, written)
        return found

    def add(self, number: int, entries: Mapping[str, tuple[Stamp, Entry]]) -> None:
        """Keep photos that were finished together.

        Args:
            number: of the first of them.
            entries: stamp and entry by name.

        Raises:
            OSError: they cannot be written.
        """
        photos = [
            (name, stamp, entry.note, {str(file.relative_to(self.output)): _digest(file) for file in entry.files})
            for name, (stamp, entry) in entries.items()
        ]
        tensors = {
            f"{place}{_SEPARATOR}{key}": value.cpu().clone()
            for place, (_, entry) in enumerate(entries.values())
            for key, value in entry.tensors.items()
        }
        data = save(tensors, {"photos": json.dumps(photos)})
        # Not flushed to the disk: what a machine that stops leaves half written has another sum, and is measured again.
        part = self.folder / f"{number:06d}.part"
        atomic_write(part, hashlib.sha256(data).hexdigest().encode() + data, durable=False)


class Ledger:
    """Records of an output folder, which its runs hold one at a time (`hold_output`)."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / ".progress"
        self._own: set[Path] = set()

    def announce(self, result: str) -> None:
        """Tell when a finished result is there, which the run makes again and replaces."""
        path = self.output / result
        if path.is_file() and not self.folder.exists():
            log.info("%s is there already: it is made again and replaced", printable(str(path)))

    def records(self, key: Mapping[str, Any]) -> Records:
        """Return the records of a measurement.

        Args:
            key: all that it depends on, as plain values.

        Raises:
            OSError: the folder cannot be made.
        """
        text = json.dumps({"simzss": __version__, **key}, sort_keys=True, default=str)
        folder = self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        self._own.add(folder)
        return Records(self.output, folder)

    def clear(self) -> None:
        """Remove all records at the end of a run, on the first rank: what they were kept for is written."""
        if rank() == 0:
            if set(self.folder.glob("*")) - self._own:
                log.info("%s: what was kept of runs with other settings is removed", printable(str(self.folder)))
            shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def hold_output(output: Path) -> Iterator[Ledger]:
    """Hold an output folder as the only run that writes there, with all its ranks, and open its ledger.

    What a killed run left half written is removed.

    Args:
        output: made where it is missing.

    Raises:
        InputError: on every rank: it cannot be made or written, or another run holds it.
    """
    with ExitStack() as held:
        with raise_on_all_ranks():
            if rank() == 0:
                held.enter_context(hold_folder(output, "output_dir"))
                for pattern in _WRITTEN:
                    for leftover in output.glob(f"{pattern}{PARTIAL}*"):
                        leftover.unlink(missing_ok=True)
        yield Ledger(output)


def stamp_of(*files: Path) -> Stamp:
    """Return size and time of change of files; None for one that is missing."""
    found: Stamp = []
    for file in files:
        try:
            status = file.stat()
            found.append([status.st_size, status.st_mtime_ns])
        except OSError:
            found.append(None)
    return found


def weights_key(model: SimZSS) -> dict[str, str]:
    """Return hashes of the weights of a model, part by part."""
    parts = {name: fingerprint(part) for name, part in model.named_children() if name != "backbone"}
    return parts | {"backbone": model.backbone.fingerprint}  # as it was before it was rounded


def classes_key(segmenter: Segmenter, classifier: Classifier, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return what labels depend on besides photos and weights.

    Args:
        segmenter: protocol.
        classifier: of the groups.
        groups: all names of each class.
    """
    prompts = templates(segmenter.protocol.templates)
    return {"protocol": segmenter.describe(classifier), "templates": prompts, "names": groups}


def plain_regions(regions: Counts | None) -> tuple[dict[str, Tensor], str | None]:
    """Return the statistics of a refinement's regions as tensors, and their kind; nothing and None without."""
    if regions is None:
        return {}, None
    return {_REGIONS + name: torch.as_tensor(value) for name, value in vars(regions).items()}, type(regions).__name__


def read_regions(tensors: Mapping[str, Tensor], kind: str | None) -> Counts | None:
    """Return the statistics from what `plain_regions` made of them."""
    if kind is None:
        return None
    own = next(one for one in Counts.__subclasses__() if one.__name__ == kind)
    found = {name.removeprefix(_REGIONS): value for name, value in tensors.items() if name.startswith(_REGIONS)}
    return own(**{name: value if value.dim() else int(value) for name, value in found.items()})


def _digest(file: Path) -> str | None:
    try:
        return sha256_of(file)
    except OSError:
        return None


def _read(path: Path) -> Iterator[tuple[str, Stamp, Any, dict[str, str], dict[str, Tensor]]]:
    """Yield name, stamp, note, digests of files, and tensors of each photo of a part; none of a broken one."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    data = content[_DIGITS:]
    if content[:_DIGITS] != hashlib.sha256(data).hexdigest().encode():
        log.warning("%s is broken: its photos are measured again", printable(str(path)))
        return
    parts: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load(data).items():
        number, _, tensor_name = key.partition(_SEPARATOR)
        parts.setdefault(int(number), {})[tensor_name] = tensor
    length = int.from_bytes(data[:8], "little")
    photos = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["photos"])
    for place, (name, stamp, note, files) in enumerate(photos):
        yield name, stamp, note, files, parts.get(place, {})
