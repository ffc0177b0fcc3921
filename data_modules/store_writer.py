"""Writing a store: beside its place, durably, and into its place when it is whole."""

import contextlib
import errno
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from data_modules.store import (
    CHUNK_BYTES,
    FLAT,
    FORMAT,
    MANIFEST,
    PARTIAL,
    VERSION,
    Arrays,
    DataError,
    Store,
    chunk_checksums,
    manifest_digest,
)
from lightning_genesis.storage.files import sync_folder, to_disk


class StoreWriter:
    """Writes a store record by record; a context manager, and only a clean exit makes the store appear.

    Args:
        path: the folder to make.
        name: the dataset.
        split: `train`, `val` or `test`.
        settings: what the data depend on; `Store.open` compares them.
        source: where the data come from, for people to read.

    Raises:
        DataError: on entry, if nothing can be written there; on exit, if the disk is full.
    """

    def __init__(
        self, path: Path, name: str, split: str, settings: Mapping[str, Any], source: Mapping[str, Any]
    ) -> None:
        self.path = path
        self._settings = dict(settings)
        self._about = {"name": name, "split": split, "settings": self._settings, "source": dict(source)}
        self._folder = path.parent / f".{path.name}.{uuid.uuid4().hex}{PARTIAL}"
        self._files: dict[str, _ArrayFile] = {}
        self._count = 0

    def __enter__(self) -> Self:
        try:
            remove_leftovers(self.path.parent)
            self._folder.mkdir(parents=True)
        except OSError as error:
            raise DataError(
                f"{self.path.parent}: cannot be written to ({error.strerror or error}); choose another `root`"
            ) from error
        return self

    def append(self, records: Arrays) -> int:
        """Add `n` records, `[n, ...]` under the same names each time; returns `n`.

        A flat array grows by as much as it is given.

        Raises:
            ValueError: if names, dtypes, shapes or lengths do not agree.
        """
        lengths = {len(array) for name, array in records.items() if not name.startswith(FLAT)}
        if (self._count and records.keys() != self._files.keys()) or len(lengths) != 1:
            raise ValueError(f"records {sorted(records)} of lengths {lengths} after {sorted(self._files)}")
        for name, array in records.items():
            if name not in self._files:
                self._files[name] = _ArrayFile(self._folder / f"{name}.npy", array)
            self._files[name].append(array)
        self._count += (length := lengths.pop())
        return length

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        except OSError as full:
            error = full
            raise
        finally:
            for file in self._files.values():
                file.abandon()
            shutil.rmtree(self._folder, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"{self.path}: the disk is full after {self._count:,} records; nothing was kept there: "
                    "free space or choose another `root`, then run the same command again"
                ) from error

    def _finish(self) -> None:
        """Write the manifest last, make everything durable, then let the store appear under its name."""
        entries = {name: file.finish() for name, file in self._files.items()}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **self._about,
            "count": self._count,
            "arrays": entries,
        }
        manifest = json.loads(json.dumps(manifest))  # the checksum is that of what is read back
        manifest["sha256"] = manifest_digest(manifest)
        with open(self._folder / MANIFEST, "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            to_disk(file)
        sync_folder(self._folder)
        if not give_name(self._folder, self.path):
            # another process made the same store in the meantime; ours is dropped if theirs opens
            Store.open(self.path, "remove it and prepare again", self._settings)
        sync_folder(self.path.parent)


class _ArrayFile:
    """One .npy file that grows. Plain writes: a full disk behind a memory map kills the process instead."""

    def __init__(self, path: Path, like: NDArray[Any]) -> None:
        self.path = path
        self._dtype, self._record = like.dtype, like.shape[1:]
        self._length = 0
        self._file: IO[bytes] = open(path, "w+b")  # noqa: SIM115  (closed by finish or abandon)
        self._write_header()

    def _write_header(self) -> None:
        # NumPy leaves room in the header for the first axis to grow, so it can be rewritten in place
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length, *self._record)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, array: NDArray[Any]) -> None:
        if array.dtype != self._dtype or array.shape[1:] != self._record:
            raise ValueError(
                f"{self.path.name}: {array.dtype} {array.shape}, expected {self._dtype} {self._record}"
            )
        self._file.write(np.ascontiguousarray(array).data)
        self._length += len(array)

    def finish(self) -> dict[str, Any]:
        self._file.seek(0)
        self._write_header()
        to_disk(self._file)
        self._file.close()
        return {
            "dtype": str(self._dtype),
            "shape": [self._length, *self._record],
            "bytes": self.path.stat().st_size,
            "chunk_bytes": CHUNK_BYTES,
            "crc32": chunk_checksums(self.path, CHUNK_BYTES),
        }

    def abandon(self) -> None:
        # closing flushes, and on a full disk that fails once more
        with contextlib.suppress(OSError):
            self._file.close()


def write_store(
    path: Path,
    chunks: Iterator[Arrays],
    *,
    name: str,
    split: str,
    settings: Mapping[str, Any],
    source: Mapping[str, Any],
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Make a store of `chunks` of records; `advance` hears of every chunk's length.

    Raises:
        DataError: if the disk is full; nothing is left behind.
    """
    with StoreWriter(path, name, split, settings, source) as writer:
        for records in chunks:
            advance(writer.append(records))


def give_name(folder: Path, path: Path) -> bool:
    """Rename a folder that is whole to its place; False if another process was quicker, whose folder stays.

    Raises:
        OSError: if it cannot be renamed for another reason.
    """
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def remove_leftovers(parent: Path, age: float = 24 * 3600) -> None:
    """Remove what a killed preparation left behind; young ones may belong to a running process."""
    for folder in parent.glob(f".*{PARTIAL}"):
        with contextlib.suppress(OSError):  # another process may be quicker
            newest = max(path.stat().st_mtime for path in [folder, *folder.rglob("*")])
            if time.time() - newest > age:
                shutil.rmtree(folder, ignore_errors=True)
