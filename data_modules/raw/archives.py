"""Publishers' archives, opened with care: tar files are unpacked, zip files read where they are.

What an archive says of itself is not trusted. A member that leads out of the folder, a link, a device, a size
above a stated bound: the archive is refused, and nothing of it is kept. Memory stays at some MiB, whatever
sizes are claimed, except for the list of a zip file's members (about 1 kB each).
"""

import bz2
import errno
import gzip
import os
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from rich.console import Console

from data_modules.disk import free_bytes, size_text
from data_modules.store import DataError
from data_modules.store_writer import give_name, remove_leftovers
from lightning_genesis.storage.files import open_regular

UNPACKING = 600.0
"""Seconds without a new file after which what is half unpacked, up to 33 GB, has been left behind."""
BLOCK_BYTES = 2**20
MAX_NAME_BYTES = 2**16
"""A longer name, or other note about a member, is refused."""
MAX_PADDING_BYTES = 2**24
"""Zeros behind the end of a tar archive."""
_TAR_BLOCK = 512
_GZIP, _BZIP2 = b"\x1f\x8b", b"BZh"


@dataclass(frozen=True)
class Limits:
    """What an archive may claim; more is refused before it is written."""

    member_bytes: int
    """Size of a file in it."""
    total_bytes: int
    """Size of all of them."""
    members: int
    """Their number."""


def unpack(
    archive: Path,
    target: Path,
    place: Callable[[str], str | None],
    limits: Limits,
) -> None:
    """Unpack a tar archive, plain, gzip or bzip2, to a new folder that appears when it is whole.

    Args:
        archive: the file.
        target: the folder to make.
        place: a member's path to its path below `target`, or None for a member that is not needed.
        limits: what the archive may claim.

    Raises:
        DataError: if the file is missing, damaged, cut off, no such archive, has a member that is not
            allowed, nothing that is needed, or the disk is too small; nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, UNPACKING)
    try:
        size = archive.stat().st_size
    except OSError as error:
        raise _unreadable(archive, error) from error
    if size > (free := free_bytes(target.parent)):
        raise DataError(
            f"{target.parent}: {size_text(free)} free, expected at least {size_text(size)} to unpack "
            f"{archive}; free space or choose another `root`"
        )
    folder = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    folder.mkdir()
    try:
        with open_regular(archive) as file:
            _unpack_into(folder, file, archive, place, limits)
        if not any(folder.iterdir()):
            raise DataError(
                f"{archive}: has none of the files expected; is it the archive of another dataset?"
            )
        give_name(folder, target)
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        raise _unreadable(archive, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unpack_all(
    name: str,
    folder: Path,
    root: Path,
    archives: Mapping[str, Limits],
    place: Callable[[str], str | None],
) -> Path:
    """Unpack a dataset's archives, each to a folder of its own in `root/raw/<name>-unpacked-...`.

    What was unpacked before is kept; archives of other sizes get another place.

    Args:
        name: the dataset.
        folder: where the archives are.
        root: the data module's.
        archives: file names, and what each may claim.
        place: as in `unpack`.

    Returns:
        The folder of these folders.

    Raises:
        DataError: as `unpack`.
    """
    try:
        sizes = [(archive, (folder / archive).stat().st_size) for archive in archives]
    except OSError as error:
        raise DataError(f"{error.filename}: not readable ({error.strerror}), expected an archive") from error
    target = root / "raw" / f"{name}-unpacked-{zlib.crc32(repr(sizes).encode()):08x}"
    console = Console(stderr=True)
    for archive, limits in archives.items():
        done = target / archive.partition(".")[0]
        if not done.exists():
            with console.status(f"{name}: unpacking {archive} to {target}", spinner="dots"):
                unpack(folder / archive, done, place, limits)
    return target


def _unpack_into(
    folder: Path, file: IO[bytes], archive: Path, place: Callable[[str], str | None], limits: Limits
) -> None:
    """Write the members that are needed."""
    start = file.read(8)
    file.seek(0)
    stream: Any = file
    if start.startswith(_GZIP):
        stream = gzip.GzipFile(fileobj=file)
    elif start.startswith(_BZIP2):
        stream = bz2.BZ2File(file)
    for name, content in _members(stream, archive, limits):
        path = place(name)
        if path is None:
            continue
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(target, "xb") as output:
                for block in content:
                    output.write(block)
        except FileExistsError as error:
            raise DataError(
                f"{archive}: {name!r}: is there twice, expected once; get the file again"
            ) from error


def _members(stream: Any, archive: Path, limits: Limits) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Path and content of every file of a tar stream, in order; content that is not read is skipped.

    Read here and not by `tarfile`, which takes a damaged header for the end, and a note about a member into
    memory however long it claims to be.
    """
    number = total = 0
    name: str | None = None
    size: int | None = None
    while any(block := _take(stream, _TAR_BLOCK, archive, number)):
        where = f"{archive}: member {number}"
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            reason = "is it a tar archive?" if number == 0 else "the file is damaged, get it again"
            raise DataError(f"{where}: no header of a member ({error}); {reason}") from error
        length = header.size if size is None else size
        if header.type in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        ):
            if not 0 <= header.size <= MAX_NAME_BYTES:
                raise DataError(
                    f"{where}: a note of {header.size:,} bytes, expected at most {MAX_NAME_BYTES:,}"
                )
            note = _take(stream, _padded(header.size), archive, number)[: header.size]
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = os.fsdecode(note.rstrip(b"\0"))
            elif header.type == tarfile.XHDTYPE:
                records = _pax_records(note)
                name = records.get("path", name)
                size = int(records["size"]) if "size" in records else size
            continue
        path = checked_name(header.name if name is None else name, where)
        name = size = None
        number += 1
        if header.isdir():
            continue
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            raise DataError(f"{where}: {path!r} is a link or a device, expected files and folders only")
        total += length
        _check_limits(f"{where}: {path!r}", length, total, number, limits)
        content = _content(stream, length, archive, number)
        yield path, content
        for _ in content:
            pass
    _check_padding(stream, archive)


def _take(stream: Any, count: int, archive: Path, number: int) -> bytes:
    data: bytes = stream.read(count)
    if len(data) < count:
        raise DataError(f"{archive}: member {number}: the file is cut off, get it again")
    return data


def _padded(size: int) -> int:
    return -(-size // _TAR_BLOCK) * _TAR_BLOCK


def _content(stream: Any, size: int, archive: Path, number: int) -> Iterator[bytes]:
    for start in range(0, size, BLOCK_BYTES):
        yield _take(stream, min(BLOCK_BYTES, size - start), archive, number)
    _take(stream, _padded(size) - size, archive, number)


def _pax_records(note: bytes) -> dict[str, str]:
    """What a POSIX header says: records of their length, a key, `=`, a value and the end of a line."""
    records = {}
    while note:
        length = int(note.partition(b" ")[0])
        if not 0 < length <= len(note):
            raise ValueError(f"a record of {length} bytes among {len(note)}")
        key, _, value = note[:length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
        records[os.fsdecode(key)] = os.fsdecode(value)
        note = note[length:]
    return records


def _check_limits(where: str, size: int, total: int, count: int, limits: Limits) -> None:
    for found, most, unit in (
        (size, limits.member_bytes, "bytes"),
        (total, limits.total_bytes, "bytes in all"),
        (count, limits.members, "members"),
    ):
        if not 0 <= found <= most:
            raise DataError(f"{where}: {found:,} {unit}, expected at most {most:,}; the archive is refused")


def _check_padding(stream: Any, archive: Path) -> None:
    """What follows the end has to be zeros, and not many; reading them lets gzip compare its checksum."""
    count = 0
    while block := stream.read(BLOCK_BYTES):
        count += len(block)
        if count > MAX_PADDING_BYTES or any(block):
            raise DataError(f"{archive}: more content behind its end; the file is damaged, get it again")


def checked_name(name: str, where: str) -> str:
    """A member's path, if it stays in the folder.

    Raises:
        DataError: if it is absolute, empty or goes up; `where` is the archive and the member.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise DataError(
            f"{where}: {name[:80]!r} leads elsewhere, expected a path inside; the archive is refused"
        )
    return str(path)


def _unreadable(archive: Path | str, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"{archive}: the disk is full while it was unpacked; nothing was kept: free space or choose "
            "another `root`"
        )
    reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:160]
    return DataError(f"{archive}: damaged or not readable ({reason}); get it again")


class Tree(Protocol):
    """Files below one folder, on disk or in a zip file."""

    names: list[str]
    """Paths of all files and folders in it, with `/` between their parts."""

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            DataError: if it cannot be read or is too large.
        """
        ...

    def where(self, name: str) -> str:
        """The file for error messages."""
        ...


class FolderTree:
    """A folder.

    Args:
        path: the folder.
        member_bytes: a larger file is refused.
    """

    def __init__(self, path: Path, member_bytes: int) -> None:
        self.path = path
        self._limit = member_bytes
        self.names = []
        for folder, subfolders, files in os.walk(path):
            below = Path(folder).relative_to(path)
            self.names += [(below / name).as_posix() for name in (*subfolders, *files)]

    def where(self, name: str) -> str:
        """The file's path."""
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            DataError: if it cannot be read or is too large.
        """
        return read_file(self.path / name, self._limit)


class ZipTree:
    """A zip file, read where it is; many threads may do so at once.

    Args:
        path: the file.
        member_bytes: a larger member is refused, whatever size it claims.

    Raises:
        DataError: if it is no zip file, cut off, or has a link or a path that leads out of it.
    """

    def __init__(self, path: Path, member_bytes: int) -> None:
        self.path = path
        self._limit = member_bytes
        try:
            open_regular(path).close()
            self._file = zipfile.ZipFile(path)
        except Exception as error:  # for rubbish the parser may raise anything
            raise _unreadable(path, error) from error
        self._members = {}
        for number, info in enumerate(self._file.infolist()):
            name = checked_name(info.filename, f"{path}: member {number}")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(
                    f"{path}: member {number}: {name!r} is a link, expected files and folders only"
                )
            self._members[name] = info
        self.names = list(self._members)

    def where(self, name: str) -> str:
        """The zip file and the path in it."""
        return f"{self.path}: {name}"

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            DataError: if it cannot be read or is too large.
        """
        info = self._members[name]
        if (size := max(info.file_size, info.compress_size)) > self._limit:
            raise DataError(f"{self.where(name)}: {size:,} bytes, expected at most {self._limit:,}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{self.where(name)}: compression {info.compress_type}, expected none or deflate")
        try:
            with self._file.open(info) as member:
                # without a number it would unpack all there is, whatever size was claimed
                return member.read(info.file_size + 1)
        except Exception as error:  # damaged or encrypted; its parser may raise anything
            raise _unreadable(self.where(name), error) from error


def read_file(path: Path, limit: int) -> bytes:
    """The content of a file.

    Raises:
        DataError: if it cannot be read, or has more than `limit` bytes.
    """
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror or error}), expected a file") from error
    if len(content) > limit:
        raise DataError(f"{path}: more than {limit:,} bytes, expected at most so many; is it the right file?")
    return content
