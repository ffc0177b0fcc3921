"""What is known of a publisher's file, and of a server's; and whether a file can be it."""

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import Progress

from data_modules.store import DataError
from lightning_genesis.storage.files import open_regular

START_BYTES = 512
"""Bytes at the beginning of a file by which its format is told."""
FACTOR = 4
"""A file of less than a fourth or more than this many times the size that is said is another one."""
_MAX_CHECKSUM_BYTES = 4096
_SETTLED = 60.0  # seconds without a change, since times have whole seconds and clocks differ
Start = bytes  # within `RawFile` the name `bytes` is a size
_DIGEST = re.compile(rb"\b[0-9a-fA-F]{32}\b")


class Format(NamedTuple):
    """How the files of a format begin."""

    name: str
    start: re.Pattern[bytes]


GZIP = Format("a gzip file", re.compile(rb"\x1f\x8b\x08"))
BZIP2 = Format("a bzip2 file", re.compile(rb"BZh[1-9]"))
ZIP = Format("a zip file", re.compile(rb"PK\x03\x04"))
# the length of the first record, little endian in eight bytes: no text begins so
TFRECORD = Format("a TFRecord file", re.compile(rb"(?s)....\0{4}"))
CHECKSUM = Format("an MD5 checksum", re.compile(rb"(?s)[^<{\0]*?\b[0-9a-fA-F]{32}\b"))


@dataclass(frozen=True)
class RawFile:
    """A publisher's file."""

    name: str
    """Path below the folder of raw files, in the publisher's naming."""
    url: str
    bytes: int | None = None
    """Exact size, where it is known."""
    about_bytes: int | None = None
    """What the publisher says of the size, or our estimate."""
    sha256: str | None = None
    md5: str | None = None
    format: Format | None = None
    """How it has to begin."""
    optional: bool = False
    """Whether one can do without it."""
    checksum_names: tuple[str, ...] = ()
    """Names of files beside it, of which the first that is there has its MD5."""

    @property
    def least_bytes(self) -> int:
        """A smaller file is another one."""
        return self.bytes if self.bytes is not None else max(1, (self.about_bytes or 0) // FACTOR)

    @property
    def most_bytes(self) -> int | None:
        """A larger file is another one; None: not known."""
        if self.bytes is not None:
            return self.bytes
        return None if self.about_bytes is None else FACTOR * self.about_bytes

    @property
    def has_checksum(self) -> bool:
        """Whether wrong bytes would be noticed."""
        return self.sha256 is not None or self.md5 is not None

    def size_problem(self, size: int) -> str | None:
        """Why a file of this many bytes cannot be it."""
        if self.least_bytes <= size and (self.most_bytes is None or size <= self.most_bytes):
            return None
        if self.bytes is not None:
            return f"{size:,} bytes, expected {self.bytes:,}"
        about = f"about {self.about_bytes:,}" if self.about_bytes else "more"
        return f"{size:,} bytes, expected {about}"

    def start_problem(self, start: Start) -> str | None:
        """Why a file that begins so cannot be it."""
        if self.format is None or self.format.start.match(start):
            return None
        return f"begins with {start[:24]!r}, expected {self.format.name}"

    def look_problem(self, path: Path) -> str | None:
        """Why a file cannot be it by its size and beginning.

        Raises:
            OSError: if it is not readable or no regular file.
        """
        with open_regular(path) as file:
            start = file.read(START_BYTES)
        return self.size_problem(path.stat().st_size) or self.start_problem(start)

    def checksum_problem(self, sha256: str, md5: str | None) -> str | None:
        """Which checksum differs."""
        for kind, found, expected in (("SHA-256", sha256, self.sha256), ("MD5", md5, self.md5)):
            if expected is not None and found != expected:
                return f"{kind} {found}, expected {expected}"
        return None


@dataclass(frozen=True)
class Version:
    """What a server says of the state of its file."""

    etag: str = ""
    modified: str = ""
    settled: bool = False
    """Whether it was last changed long enough ago for the time to tell two states apart."""
    total: int | None = None
    """Bytes of the whole file."""
    packed: bool = False
    """Whether it says that they are packed with gzip."""

    @property
    def validator(self) -> str | None:
        """What promises the same bytes, if anything does: a weak tag does not (RFC 9110, 8.8)."""
        if self.etag:
            return self.etag if self.etag.startswith('"') else None
        return self.modified if self.settled and self.modified else None

    @classmethod
    def of(cls, headers: Message, total: int | None, packed: bool) -> "Version":
        """What an answer's head says."""
        modified, settled = headers.get("Last-Modified", ""), False
        with suppress(ValueError, TypeError):
            age = parsedate_to_datetime(headers.get("Date", "")) - parsedate_to_datetime(modified)
            settled = age.total_seconds() >= _SETTLED
        return cls(headers.get("ETag", ""), modified, settled, total, packed)

    def differs(self, headers: Message) -> bool:
        """Whether another answer is about another state."""
        pairs = ((self.etag, headers.get("ETag", "")), (self.modified, headers.get("Last-Modified", "")))
        return any(one and other and one != other for one, other in pairs)


def with_checksum(file: RawFile, folder: Path) -> RawFile:
    """The file with the MD5 that the publisher gives in another file beside it, if that is there.

    Raises:
        DataError: if that file has no checksum in it.
    """
    path = next((path for name in file.checksum_names if (path := folder / name).is_file()), None)
    if path is None:
        return file
    with open_regular(path) as sums:
        text = sums.read(_MAX_CHECKSUM_BYTES)
    # of several lines the one that names the file
    named = [line for line in text.splitlines() if Path(file.name).name.encode() in line]
    match = next((match for line in (*named, text) if (match := _DIGEST.search(line))), None)
    if match is None:
        raise DataError(f"{path}: found {text[:60]!r}, expected an MD5 checksum; remove it or get it again")
    return replace(file, md5=match[0].decode().lower())


def digests(path: Path, progress: Progress | None, md5: bool) -> tuple[str, str | None]:
    """SHA-256 and, if asked for, MD5 of a file.

    Raises:
        OSError: if it is not readable or no regular file.
    """
    sha256, other = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open_regular(path) as file:
        size = path.stat().st_size
        task = None if progress is None else progress.add_task(f"checksum of {path.name}", total=size)
        while block := file.read(4 * 2**20):
            sha256.update(block)
            if md5:
                other.update(block)
            if progress is not None and task is not None:
                progress.advance(task, len(block))
    if progress is not None and task is not None:
        progress.remove_task(task)
    return sha256.hexdigest(), other.hexdigest() if md5 else None


def file_record(file: RawFile, folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """What the manifest says of a raw file: name, size, SHA-256, and where it is to be had.

    Raises:
        DataError: if it is not readable, or its exact size or checksum is known and another.
    """
    path = folder / file.name
    try:
        size = path.stat().st_size
        problem = file.size_problem(size) if file.bytes is not None else None
        sha256, md5 = digests(path, progress, file.md5 is not None)
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror}), expected the publisher's file") from error
    if problem := problem or file.checksum_problem(sha256, md5):
        raise DataError(f"{path}: {problem}; remove it and get it again")
    return {"name": file.name, "url": file.url, "bytes": size, "sha256": sha256}
