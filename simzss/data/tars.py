"""Tar files of strangers, as a stream: plain files alone, grouped to samples, within bounds of memory.

The names in a tar are keys of samples and nothing else: no file on the disk ever has them.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from simzss.data.images import MAX_BYTES
from simzss.data.index import DamagedShardError
from simzss.errors import printable

UNREADABLE = "unreadable tar: "
"""What the reason begins with when a tar breaks off, before the reason of the tar."""
EMPTY = "no sample in the tar"
LEFT_OUT = ("no plain file", "too large", "too many files in a sample")
"""What the reason begins with when a member is not read, before a colon and more."""

_MOST = 1000  # files of a sample, and members that are left out before the whole tar is given up
_LONGEST_HEADER = 1 << 22  # bytes of names and extended attributes, which tarfile reads whole
# Photos hardly become smaller when a tar of them is compressed; a tar that grows by more was made to fill a memory.
_MOST_GROWN, _ANYHOW = 20, 1 << 28
_COMPRESSED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset keeps for itself
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.S)


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be used, why, and the shard that it was read from."""

    key: str
    reason: str
    shard: str = ""


def split_name(name: str) -> tuple[str, str] | None:
    """Return the key and the suffix that a member's name stands for; None for one that belongs to no sample."""
    found = None if _META.match(name) else _NAME.fullmatch(name)
    return None if found is None else (found[1], found[2].lower())


def read_tar(url: str, sha256: str | None = None) -> Iterator[dict[str, Any] | Skipped]:
    """Yield the files of each key of one tar as bytes by suffix, with `__key__` and `__url__`, then what is left out.

    A tar that breaks off ends with the last sample that another one follows: the one after it may be half there.

    Args:
        url: path of the tar, plain or compressed.
        sha256: of the whole file, where it is known.

    Raises:
        DamagedShardError: once all of it is read: the file has another SHA-256.
    """
    name = Path(url).name
    left_out: list[Skipped] = []
    failure = None
    empty = True
    try:
        with Path(url).open("rb", buffering=0) as file:
            source = _Source(file, hashed=sha256 is not None)
            try:
                for sample in _samples(_members(source), url, left_out):
                    empty = False
                    yield sample
            except Exception as error:
                # tarfile and the decompressors behind it raise a dozen types on broken files.
                failure = _reason(error)
            if sha256 is not None and source.sha256() != sha256:
                raise DamagedShardError.of(url, "its SHA-256 is another one")
    except OSError as error:
        failure = _reason(error)
    if failure is not None:
        yield Skipped(name, f"{UNREADABLE}{failure}", url)
    elif empty:
        yield Skipped(name, EMPTY, url)
    yield from left_out


def count_headers(url: str) -> int:
    """Count the samples of a tar up to where it breaks off, by the headers of their annotations."""
    found = 0
    with suppress(Exception), Path(url).open("rb", buffering=0) as file:  # as in `read_tar`, which tells what is wrong
        for member, _ in _members(_Source(file)):
            found += member.name.endswith(".json")
    return found


def _samples(
    members: Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]], url: str, left_out: list[Skipped]
) -> Iterator[dict[str, Any]]:
    """Yield the samples of a tar; what is not read is added to `left_out`."""
    sample: dict[str, Any] = {}
    size = 0
    try:
        for member, archive in members:
            if member.isdir() or (name := split_name(member.name)) is None:
                continue
            key, suffix = name
            goes_on = sample.get("__key__") == key
            reason = _refused(member, *((size, len(sample)) if goes_on else (0, 0)))
            content = b"" if reason else cast(BinaryIO, archive.extractfile(member)).read()
            if not goes_on:
                if sample:
                    yield sample
                sample, size = {"__key__": key, "__url__": url}, 0
            if reason:
                left_out.append(Skipped(member.name, reason, url))
            elif suffix in sample:
                left_out.append(Skipped(Path(url).name, f"{member.name}: duplicate file name in the tar", url))
            else:
                sample[suffix] = content
                size += len(content)
            if len(left_out) > _MOST:
                raise tarfile.ReadError(f"more than {_MOST} members that cannot be used")
    except _NoHeaderError:
        if sample:
            yield sample
        raise
    if sample:
        yield sample


def _refused(member: tarfile.TarInfo, size: int, files: int) -> str | None:
    """Return why a member is not read, of a sample that has so many bytes and files already; None if it is."""
    if member.issparse():  # a few bytes that say how long they would be
        return f"{LEFT_OUT[0]}: sparse"
    if not member.isreg():
        return f"{LEFT_OUT[0]}: {'link' if member.issym() or member.islnk() else 'device'}"
    if size + member.size > MAX_BYTES:
        return f"{LEFT_OUT[1]}: {member.size / 1e6:.0f} MB"
    return f"{LEFT_OUT[2]}: more than {_MOST}" if files > _MOST else None


def _members(source: "_Source") -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Yield each member of a tar with the tar, in which the next one has not been looked for yet."""
    stream = io.BufferedReader(source)
    start = stream.peek(6)
    unpack = next((unpack for magic, unpack in _COMPRESSED.items() if start.startswith(magic)), None)
    bounded = _Bounded(stream if unpack is None else unpack(stream), source)
    with tarfile.open(fileobj=cast(BinaryIO, bounded), mode="r|", tarinfo=_Header) as archive:
        while (member := archive.next()) is not None:
            if member.size < 0:
                raise tarfile.ReadError("a size below zero")
            size = min(member.size, MAX_BYTES) if member.issparse() else member.size
            end = bounded.allow(size)
            yield member, archive
            bounded.allow(max(0, end - bounded.count))
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header


class _NoHeaderError(tarfile.ReadError):
    """A tar that breaks off where another header or the end mark should be: what came before it is whole."""


class _Header(tarfile.TarInfo):
    """A header, of which a broken one is an error: tarfile takes it for the end of the tar, without a word."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        if not buf:
            raise _NoHeaderError("no end mark")
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end mark
            raise _NoHeaderError(str(error)) from error


class _Source(io.RawIOBase):
    """The bytes of a file as they are read, counted, and hashed if they are to be."""

    def __init__(self, file: io.FileIO, hashed: bool = False) -> None:
        self._file = file
        self._digest = hashlib.sha256() if hashed else None
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        if self._digest is not None:
            self._digest.update(memoryview(buffer)[:count])
        self.count += count
        return count

    def sha256(self) -> str:
        """Read the rest, since what follows the last member counts as well; returns the SHA-256 of the file."""
        block = bytearray(1 << 20)
        while self.readinto(block):
            pass
        assert self._digest is not None
        return self._digest.hexdigest()


class _Bounded:
    """Unpacked bytes of a tar, as many as a next header and what is allowed before it can have."""

    def __init__(self, file: Any, source: _Source) -> None:
        self._file = file
        self._source = source
        self.count = 0
        self.allow(0)

    def allow(self, size: int) -> int:
        """Allow so many bytes and a header's; returns the count at which the former end."""
        self._most = self.count + size + _LONGEST_HEADER
        return self.count + size

    def read(self, size: int) -> bytes:
        block: bytes = self._file.read(size)
        self.count += len(block)
        if self.count > self._most:
            raise tarfile.ReadError("a header that is too long")
        if self.count > _ANYHOW + _MOST_GROWN * self._source.count:
            raise tarfile.ReadError(f"it grows to more than {_MOST_GROWN} times its size when it is unpacked")
        return block


def _reason(error: Exception) -> str:
    """Return the reason without a path: the shard is named beside it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(str(error)) or type(error).__name__
