"""Downloads that go on where they were: range requests, retries, checksums."""

import fcntl
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.progress import Progress, TaskID

from data_modules.store import DataError
from lightning_genesis.storage.files import replacing, sync_folder, to_disk

BLOCK_BYTES = 2**18
_FATAL = range(400, 500)
_PASSING = frozenset((408, 425, 429))  # time-out, too early, too many requests


@dataclass(frozen=True)
class RawFile:
    """A publisher's file."""

    name: str
    """Path below the folder of raw files, in the publisher's naming."""
    url: str
    bytes: int | None = None
    """Exact size, where it is known."""
    about_bytes: int | None = None
    """What the publisher says of the size."""
    sha256: str | None = None
    md5: str | None = None


class _Interrupted(Exception):
    """A transfer ended before the file did; to try again may help."""


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

    What has arrived is kept in `<name>.part` and a later call, of another process too, asks for the rest. A
    server that ignores this, or whose file has changed, is read from the beginning.

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
        DataError: if the server refuses, sends something else, or nothing any more; or if another process is
            downloading the file.
    """
    target = folder / file.name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f"{target.name}.part"), "ab") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{part.name}: another process is downloading it; wait for that one") from error
        if target.exists():  # the other process was quicker
            return target
        transfer = _Transfer(file, part, progress, timeout, min_rate)
        transfer.resume()
        for wrong_before in (False, True):
            _complete(transfer, attempts, pause, remedy)
            problem = _problem(file, Path(part.name), transfer.count)
            if problem is None:
                break
            # the pieces of two attempts may not belong together: once more from the beginning
            transfer.restart()
            if wrong_before:
                raise DataError(f"{file.url}: {problem}; {remedy}")
        to_disk(part)
        os.replace(part.name, target)
        transfer.forget()
        sync_folder(target.parent)
    return target


def _complete(transfer: "_Transfer", attempts: int, pause: float, remedy: str) -> None:
    """Repeat until the whole file is there.

    Raises:
        DataError: if that does not help.
    """
    failures = 0
    while True:
        before = transfer.count
        try:
            return transfer.run()
        except _Interrupted as error:
            # drops of bytes now and then are no way to get a file
            failures = 1 if transfer.count - before > transfer.least else failures + 1
            if failures >= attempts:
                raise DataError(
                    f"{transfer.file.url}: {error}, {failures} times in a row; {transfer.count:,} bytes are "
                    f"here: run the same command again to go on there, {remedy}"
                ) from error
        except DataError as error:
            raise DataError(f"{error}; {remedy}") from error
        time.sleep(pause * 2 ** (failures - 1))


class _Transfer:
    """One file on its way: what has arrived and what it is a part of."""

    def __init__(
        self, file: RawFile, part: IO[bytes], progress: Progress | None, timeout: float, min_rate: float
    ) -> None:
        self.file = file
        self.count = 0
        self._part = part
        self._progress = progress
        self._task: TaskID | None = None
        if progress is not None:
            self._task = progress.add_task(file.name, total=file.bytes or file.about_bytes)
        self.least = timeout * min_rate  # bytes that make an attempt worth its time
        self._timeout, self._min_rate = timeout, min_rate
        self._notes = Path(f"{part.name}.json")
        self._version: str | None = None  # what the server calls the state of its file

    def resume(self) -> None:
        """Take up what an earlier process has left, if it is known what it belongs to."""
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            if notes["url"] == self.file.url:
                self._version = notes["version"]
                self.count = self._part.seek(0, os.SEEK_END)
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self.restart()

    def restart(self) -> None:
        """Forget what has arrived."""
        self._part.truncate(0)
        self._part.seek(0)
        self.count, self._version = 0, None

    def forget(self) -> None:
        """Remove the notes about the part."""
        self._notes.unlink(missing_ok=True)

    def run(self) -> None:
        """Ask for what is missing and append it.

        Raises:
            _Interrupted: if it ended early.
            DataError: if the server refuses or sends something else.
        """
        # compressed on the way it would have other lengths
        headers = {"User-Agent": "lightning-genesis", "Accept-Encoding": "identity"}
        if self.count:
            headers["Range"] = f"bytes={self.count}-"
            if self._version is not None:
                headers["If-Range"] = self._version
        request = urllib.request.Request(self.file.url, headers=headers)
        total = None
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                total = self._begin(response)
                self._receive(response, total)
        except urllib.error.HTTPError as error:
            self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise _Interrupted(f"the transfer broke off ({str(reason) or type(error).__name__})") from error
        finally:
            self._part.flush()
        if total is not None and self.count < total:
            raise _Interrupted(f"the connection ended before {total:,} bytes had come")

    def _begin(self, response: Any) -> int | None:
        """Look at the answer's head; returns the length of the whole file, if it says so."""
        kind = response.headers.get_content_type()
        if kind == "text/html":
            raise DataError(f"{self.file.url}: the answer is a web page, expected a file")
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != self.count:
                self.restart()
                raise _Interrupted("the answer is another part of the file than asked for")
            total = int(match[2]) if match[2].isdigit() else None
        elif self.count:
            self.restart()
        if self.file.bytes is not None and total not in (None, self.file.bytes):
            raise DataError(f"{self.file.url}: {total:,} bytes, expected {self.file.bytes:,}")
        tag = response.headers.get("ETag", "")
        # a weak tag does not promise the same bytes
        self._version = tag if tag.startswith('"') else response.headers.get("Last-Modified")
        with replacing(self._notes) as temporary:
            temporary.write_text(
                json.dumps({"url": self.file.url, "version": self._version}), encoding="utf-8"
            )
        if self._progress is not None and self._task is not None and total is not None:
            self._progress.update(self._task, total=total)
        return total

    def _receive(self, response: Any, total: int | None) -> None:
        since, received = time.monotonic(), 0
        # `read1` gives what is there; `read` would wait for a whole block however slowly it comes
        while block := response.read1(BLOCK_BYTES):
            self._part.write(block)
            self.count += len(block)
            received += len(block)
            if self._progress is not None and self._task is not None:
                self._progress.update(self._task, completed=self.count)
            limit = total or self.file.bytes
            if limit is not None and self.count > limit:
                self.restart()
                raise DataError(f"{self.file.url}: more than {limit:,} bytes, expected {limit:,}")
            if (seconds := time.monotonic() - since) > self._timeout:
                if received < self._min_rate * seconds:
                    raise _Interrupted(f"{received:,} bytes came in {seconds:.0f} s")
                since, received = time.monotonic(), 0

    def _refused(self, error: urllib.error.HTTPError) -> None:
        if error.code == 416:
            # nothing is left to send, if it is the same file
            if error.headers.get("Content-Range") == f"bytes */{self.count}" and self.count:
                return
            self.restart()
            raise _Interrupted("the server has no such part of the file") from error
        reason = f"HTTP status {error.code} {error.reason}"
        if error.code in _FATAL and error.code not in _PASSING:
            raise DataError(f"{self.file.url}: {reason}, expected the file") from error
        raise _Interrupted(reason) from error


def _digests(path: Path, progress: Progress | None, md5: bool) -> tuple[str, str | None]:
    """SHA-256 and, if asked for, MD5 of a file."""
    sha256, other = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    size = path.stat().st_size
    task = None if progress is None else progress.add_task(f"checksum of {path.name}", total=size)
    with open(path, "rb") as file:
        while block := file.read(4 * 2**20):
            sha256.update(block)
            if md5:
                other.update(block)
            if progress is not None and task is not None:
                progress.advance(task, len(block))
    if progress is not None and task is not None:
        progress.remove_task(task)
    return sha256.hexdigest(), other.hexdigest() if md5 else None


def _problem(file: RawFile, path: Path, size: int) -> str | None:
    """What is wrong with a file, by its known size and checksums."""
    if file.bytes is not None and size != file.bytes:
        return f"{size:,} bytes, expected {file.bytes:,}"
    if file.sha256 is None and file.md5 is None:
        return None
    sha256, md5 = _digests(path, None, file.md5 is not None)
    for kind, found, expected in (("SHA-256", sha256, file.sha256), ("MD5", md5, file.md5)):
        if expected is not None and found != expected:
            return f"{kind} {found}, expected {expected}"
    return None


def file_record(file: RawFile, folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """What the manifest says of a raw file: name, size, SHA-256, and where it is to be had.

    Raises:
        DataError: if its size or checksum is known and another.
    """
    path = folder / file.name
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        raise DataError(f"{path}: {size:,} bytes, expected {file.bytes:,}; remove it and get it again")
    sha256, md5 = _digests(path, progress, file.md5 is not None)
    for kind, found, expected in (("SHA-256", sha256, file.sha256), ("MD5", md5, file.md5)):
        if expected is not None and found != expected:
            raise DataError(f"{path}: {kind} {found}, expected {expected}; remove it and get it again")
    return {"name": file.name, "url": file.url, "bytes": size, "sha256": sha256}
