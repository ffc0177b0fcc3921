"""Files and folders that are there as a whole or not at all, also after a crash, a kill or a full disk."""

import errno
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

LEFTOVER_AGE = 3600.0
"""Seconds after which a temporary file that nobody has written to belongs to a killed process."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary name next to `path`; what the block writes there becomes `path`, durably.

    The file is on the disk before it gets its name, and the name is before the block is left. Until then, and
    if anything fails, `path` is what it was and nothing else remains. What a killed process left behind is
    removed by a later write of the same file.

    Raises:
        OSError: if it cannot be written.
    """
    path = Path(path)
    _remove_leftovers(path)
    temporary = _temporary(path)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            to_disk(file)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is full; an unfinished one is removed.

    Raises:
        OSError: if there is such a folder already, with something in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _temporary(path)
    partial.mkdir()
    try:
        yield partial
        os.rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def link(source: str | Path, path: str | Path) -> None:
    """Makes `path` another name of the file `source`, in one step and durably; it may exist.

    Raises:
        OSError: if the file system has no hard links, or it cannot be written.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        os.link(source, temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        # where both are names of one file already, POSIX leaves the temporary name as well
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def open_regular(path: str | Path) -> BufferedReader:
    """Opens a regular file for reading. A pipe or a device, which may never end, is not waited for.

    Raises:
        OSError: if it is not readable, or no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a regular file, in hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_disk(file: IO[Any]) -> None:
    """Waits until what was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: str | Path) -> None:
    """Waits until a folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):  # another process may be quicker
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE:
                leftover.unlink()
