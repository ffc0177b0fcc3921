"""Downloads that go on where they were: range requests, retries, checksums, and no trust in the answer."""

import errno
import fcntl
import gzip
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from email.message import Message
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from data_modules.raw.raw_file import GZIP, START_BYTES, RawFile, Version, digests, file_record
from data_modules.store import DataError
from lightning_genesis.storage.files import replacing, sync_folder

__all__ = ["RawFile", "download", "file_record"]

BLOCK_BYTES = 2**18
_FATAL = range(400, 500)
_PASSING = frozenset((408, 425, 429))  # time-out, too early, too many requests
_PAGES = frozenset(("text/html", "application/xhtml+xml"))
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_NUMBER = "[0-9]{1,18}"
_RANGE = re.compile(rf"bytes ({_NUMBER})-{_NUMBER}/({_NUMBER}|\*)")


class _Interrupted(Exception):
    """A transfer ended before the file did; to try again may help."""


class _Refused(Exception):
    """The server does not give the file, or something else; to try again will not help."""


def download(
    file: RawFile,
    folder: Path,
    progress: Progress | None = None,
    *,
    remedy: str = "try again later",
    attempts: int = 6,
    timeout: float = 30.0,
    pause: float = 1.0,
    min_rate: float = 1000.0,
) -> Path:
    """Bring a file to `folder`, unless it is there.

    What has arrived is kept in `<name>.part` and a later call, of another process too, asks for the rest,
    where the server says by which it can be told that it is the rest of the same file. A server that ignores
    this, or whose file has changed, is read from the beginning.

    Args:
        file: what to get.
        folder: where to.
        progress: shows the bytes.
        remedy: what else a user can do, for error messages.
        attempts: attempts in a row that bring next to nothing before it gives up.
        timeout: seconds without a byte, or slower than `min_rate`, until the connection is given up.
        pause: seconds before the second attempt, doubled with each further one.
        min_rate: bytes per second that a connection has to bring.

    Returns:
        The file.

    Raises:
        DataError: if the server refuses, sends something else, or nothing any more; if the disk is full or
            the folder not writable; if something else has the file's name; or if another process is
            downloading the file.
    """
    target = folder / file.name
    if os.path.lexists(target):
        _check_there(file, target, remedy)
        return target
    part = target.with_name(f"{target.name}.part")
    with _writing(part):
        target.parent.mkdir(parents=True, exist_ok=True)
        output = _open_part(part)
    with output:
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(output.fileno()), os.stat(part))
        except OSError:
            same = False
        if target.exists():  # the other process was quicker
            return target
        if not same:
            raise DataError(f"{part}: another process is downloading it; wait for that one")
        transfer = _Transfer(file, output, progress, timeout, min_rate)
        try:
            whole = _fetch(transfer, attempts, pause, remedy)
            with _writing(part), open(whole, "rb") as content:
                os.fsync(content.fileno())
                os.replace(whole, target)
            transfer.count = 0
        finally:
            transfer.tidy()
        with _writing(part):
            sync_folder(target.parent)
    return target


def _check_there(file: RawFile, target: Path, remedy: str) -> None:
    """See that what has the file's name may be it.

    Raises:
        DataError: if it cannot.
    """
    try:
        problem = file.look_problem(target)
    except OSError as error:
        problem = f"{error.strerror}, expected the publisher's file"
    if problem is not None:
        raise DataError(f"{target}: {problem}; remove it and run the same command again, {remedy}")


def _fetch(transfer: "_Transfer", attempts: int, pause: float, remedy: str) -> Path:
    """Get the whole file; returns where it is.

    Raises:
        DataError: if it is not to be had.
    """
    for last in (False, True):
        _complete(transfer, attempts, pause, remedy)
        whole, problem = transfer.content()
        if problem is None:
            return whole
        # the pieces of two attempts may not belong together: once more from the beginning
        transfer.restart()
        if last:
            break
    raise DataError(f"{transfer.file.url}: {problem}; {remedy}")


def _complete(transfer: "_Transfer", attempts: int, pause: float, remedy: str) -> None:
    """Repeat until all bytes are there.

    Raises:
        DataError: if that does not help.
    """
    failures, best = 0, transfer.count
    url = transfer.file.url
    while True:
        try:
            return transfer.run()
        except _Interrupted as error:
            # drops of bytes now and then are no way to get a file
            failures = 1 if transfer.count > best + transfer.least else failures + 1
            best = max(best, transfer.count)
            if failures >= attempts:
                kept = "run the same command again to go on there"
                if not transfer.resumable:
                    kept = "the server gives no way to go on there"
                raise DataError(
                    f"{url}: {error}, {failures} times in a row; {transfer.count:,} bytes are here: {kept}, "
                    f"{remedy}"
                ) from error
        except _Refused as error:
            raise DataError(f"{url}: {error}; {remedy}") from error
        time.sleep(pause * 2 ** (failures - 1))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tells what went wrong on this machine from what went wrong on the way.

    Raises:
        DataError: for an `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(path) from error
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: not writable ({reason}); choose another `root`") from error


def _full(path: Path) -> DataError:
    return DataError(
        f"{path}: the disk is full; what has come is kept: free space and run the same command again"
    )


def _take(packed: gzip.GzipFile, count: int) -> bytes:
    """Some bytes of a gzip file; what is wrong with it is not an `OSError`, as what is wrong with a disk."""
    try:
        return packed.read(count)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise EOFError(str(error)) from error


def _open_part(path: Path) -> Any:
    # without a buffer: after an error nobody knows what is still in it
    return open(path, "ab", buffering=0)


class _Transfer:
    """One file on its way: what has arrived and what it is a part of."""

    def __init__(
        self, file: RawFile, part: Any, progress: Progress | None, timeout: float, min_rate: float
    ) -> None:
        self.file = file
        self.count = 0
        """Bytes that are known to be in the part, and right."""
        self._part = part
        self._path = Path(part.name)
        self._progress = progress
        self._task: TaskID | None = None
        if progress is not None:
            self._task = progress.add_task(file.name, total=file.bytes or file.about_bytes)
        self.least = timeout * min_rate  # bytes that make an attempt worth its time
        self._timeout, self._min_rate = timeout, min_rate
        self._notes = Path(f"{part.name}.json")
        self._unpacked = self._path.with_suffix(".unpacked")
        self._version = Version()
        self._looked = False
        self._take_up()

    @property
    def resumable(self) -> bool:
        """Whether pieces of two answers may be joined: if it is certain, or will be seen."""
        return self._version.validator is not None or self.file.has_checksum

    def _take_up(self) -> None:
        """Take up what an earlier process has left, if it is known what it belongs to."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            self._version = Version(**notes["version"])
            if notes["url"] == self.file.url and self.resumable:
                self.count = os.fstat(self._part.fileno()).st_size
                return
        self.restart()

    def restart(self) -> None:
        """Forget what has arrived.

        Raises:
            DataError: if that cannot be written.
        """
        self.count, self._version, self._looked = 0, Version(), False
        self._cut()

    def _cut(self) -> None:
        """Leave nothing in the part but what is known to be right."""
        with _writing(self._path):
            self._part.truncate(self.count)

    def tidy(self) -> None:
        """Remove what is of no more use, or no use to go on with."""
        with suppress(OSError):
            self._unpacked.unlink(missing_ok=True)
            if not self.count:
                self._notes.unlink(missing_ok=True)
                self._path.unlink(missing_ok=True)

    def content(self) -> tuple[Path, str | None]:
        """Where the whole file is, now that all bytes are here, and why it is not the publisher's.

        Raises:
            DataError: if it cannot be unpacked for want of space.
        """
        try:
            path = self._unpack() if self._version.packed else self._path
            if (problem := self.file.look_problem(path)) is None and self.file.has_checksum:
                problem = self.file.checksum_problem(*digests(path, None, self.file.md5 is not None))
            return path, problem
        except EOFError as error:
            return self._path, f"packed on the way and damaged ({error})"

    def _unpack(self) -> Path:
        """Undo what a server does that packs what it was asked to send as it is."""
        with gzip.open(self._path) as packed:
            start = _take(packed, START_BYTES)
            if self.file.format is GZIP and self.file.start_problem(start) is not None:
                return self._path  # the server speaks of the file's own packing
            most, count = self.file.most_bytes, 0
            with _writing(self._unpacked), open(self._unpacked, "wb") as output:
                block = start
                while block and (most is None or count <= most):
                    output.write(block)
                    count += len(block)
                    block = _take(packed, BLOCK_BYTES)
        return self._unpacked

    def run(self) -> None:
        """Ask for what is missing and append it.

        Raises:
            _Interrupted: if it ended early.
            _Refused: if the server refuses or sends something else.
            DataError: if it cannot be written.
        """
        if self.count and not self.resumable:
            self.restart()
        self._cut()
        # compressed on the way it would have other lengths
        headers = {"User-Agent": "lightning-genesis", "Accept-Encoding": "identity"}
        if self.count:
            headers["Range"] = f"bytes={self.count}-"
            if self._version.validator is not None:
                headers["If-Range"] = self._version.validator
        request = urllib.request.Request(self.file.url, headers=headers)
        total = None
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                total = self._begin(response)
                self._receive(response, total)
        except urllib.error.HTTPError as error:
            self._refused(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split())
            raise _Interrupted(f"the transfer broke off ({reason[:160]})") from error
        if total is not None and self.count < total:
            raise _Interrupted(f"the connection ended before {total:,} bytes had come")

    def _begin(self, response: Any) -> int | None:
        """Look at the answer's head; returns the length of the whole file, if it says so."""
        headers = response.headers
        if headers.get_content_type() in _PAGES:
            raise _Refused("the answer is a web page, expected a file")
        encoding = headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise _Refused(f"the answer is packed by {encoding[:20]!r}, expected the file as it is")
        packed = encoding.endswith("gzip")
        length = headers.get("Content-Length", "")
        total = int(length) if re.fullmatch(_NUMBER, length) else None
        if response.status == 206:
            match = _RANGE.fullmatch(headers.get("Content-Range", ""))
            if match is None or int(match[1]) != self.count:
                self.restart()
                raise _Interrupted("the answer is another part of the file than asked for")
            total = None if match[2] == "*" else int(match[2])
            known = self._version
            changed = known.differs(headers) or known.packed != packed or known.total not in (None, total)
            if self.count and changed:
                self.restart()
                raise _Interrupted("the file has changed meanwhile")
        elif self.count:
            self.restart()
        self._check_size(total, packed)
        self._note(headers, total, packed)
        if self._progress is not None and self._task is not None and total is not None:
            self._progress.update(self._task, total=total)
        return total

    def _check_size(self, total: int | None, packed: bool) -> None:
        """Refuse what is too small, too large or finds no place, before it is fetched."""
        if total is None:
            return
        problem = self.file.size_problem(total)
        if problem is not None and not (packed and total < self.file.least_bytes):
            self.restart()
            raise _Refused(problem)
        with _writing(self._path):
            free = shutil.disk_usage(self._path.parent).free
        if total - self.count > free:
            raise DataError(
                f"{self._path}: {free:,} bytes free, expected {total - self.count:,} for the rest of the "
                "file; free space and run the same command again"
            )

    def _note(self, headers: Message, total: int | None, packed: bool) -> None:
        """Keep what the server says of its file, for this and for a later process."""
        self._version = Version.of(headers, total, packed)
        with _writing(self._notes), replacing(self._notes) as temporary:
            notes = {"url": self.file.url, "version": asdict(self._version)}
            temporary.write_text(json.dumps(notes), encoding="utf-8")

    def _receive(self, response: Any, total: int | None) -> None:
        since, received = time.monotonic(), 0
        limit = self.file.most_bytes if total is None else total
        # `read1` gives what is there; `read` would wait for a whole block however slowly it comes
        while block := response.read1(BLOCK_BYTES):
            self._write(block)
            received += len(block)
            if self._progress is not None and self._task is not None:
                self._progress.update(self._task, completed=self.count)
            if limit is not None and self.count > limit:
                self.restart()
                raise _Refused(f"more than {limit:,} bytes, expected {limit:,} at most")
            self._look()
            if (seconds := time.monotonic() - since) > self._timeout:
                if received < self._min_rate * seconds:
                    raise _Interrupted(f"{received:,} bytes came in {seconds:.0f} s")
                since, received = time.monotonic(), 0

    def _write(self, block: bytes) -> None:
        """Append to the part, and count what has got there."""
        rest = memoryview(block)
        with _writing(self._path):
            while rest:
                written = self._part.write(rest)
                self.count += written
                rest = rest[written:]

    def _look(self) -> None:
        """Refuse another kind of file as soon as its beginning is here."""
        if self._looked or self.count < START_BYTES or self._version.packed:
            return
        self._looked = True
        with _writing(self._path), open(self._path, "rb") as part:
            start = part.read(START_BYTES)
        if (problem := self.file.start_problem(start)) is not None:
            self.restart()
            raise _Refused(problem)

    def _refused(self, error: urllib.error.HTTPError) -> None:
        if error.code == 416:
            # nothing is left to send, if it is the same file
            whole = error.headers.get("Content-Range") == f"bytes */{self.count}"
            if whole and self.count and not self._version.differs(error.headers):
                return
            self.restart()
            raise _Interrupted("the server has no such part of the file") from error
        reason = f"HTTP status {error.code} {error.reason}"
        if error.code in _FATAL and error.code not in _PASSING:
            raise _Refused(f"{reason}, expected the file") from error
        raise _Interrupted(reason) from error
