"""The one on-disk form that training reads: memory-mapped arrays and a manifest.

A store is a folder per split:

    images.npy          uint8 `[N, H, W, 3]`
    segmentations.npy   uint8 `[N, H, W]`, where the dataset has masks
    labels.<key>.npy    `[N]`, objects.<key>.npy `[N, M, ...]`, where it has them
    manifest.json       format version, source, settings, shapes, checksums

It is written beside its place and renamed into it, so a store either opens or does not exist.
"""

import contextlib
import errno
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

FORMAT = "lightning-genesis store"
VERSION = 1
CHUNK_BYTES = 16 * 2**20
MANIFEST = "manifest.json"
_PARTIAL = ".partial"

Arrays = Mapping[str, NDArray[Any]]
"""Arrays of one length by name."""


class DataError(Exception):
    """Data, or settings that name them, are not as expected; the message is one line and says what to do."""

    def __init__(self, message: str) -> None:
        # raised in a loader's process it comes back with a traceback around it, of which our line is the last
        super().__init__(message.rstrip().rpartition("DataError: ")[2])


def chunk_checksums(path: Path) -> list[int]:
    """CRC-32 of every 16 MiB of a file."""
    with open(path, "rb") as file:
        return [zlib.crc32(chunk) for chunk in iter(lambda: file.read(CHUNK_BYTES), b"")]


class Store:
    """An opened store. It travels to worker processes as a path and maps its arrays when first read.

    Use `Store.open`, which checks the folder.

    Args:
        path: the folder.
        manifest: its manifest.
        remedy: what to do if the store is damaged, for error messages.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], remedy: str) -> None:
        self.path = path
        self.manifest = manifest
        self.remedy = remedy
        self._arrays: dict[str, NDArray[Any]] | None = None

    @classmethod
    def open(
        cls, path: Path, remedy: str = "prepare it again", settings: Mapping[str, Any] | None = None
    ) -> "Store":
        """Open a store and check its manifest, file sizes, dtypes and shapes.

        Args:
            path: the folder.
            remedy: what the reader should do if it does not open, e.g. the `prepare` command.
            settings: what the store must have been made with; None takes any.

        Raises:
            DataError: if it is missing, of another version or settings, or damaged.
        """
        manifest = _read_manifest(path, remedy)
        if settings is not None and manifest["settings"] != dict(settings):
            found, expected = manifest["settings"], dict(settings)
            keys = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
            differing = "; ".join(f"`{k}` is {found.get(k)!r}, expected {expected.get(k)!r}" for k in keys)
            raise DataError(
                f"{path / MANIFEST}: made with other settings: {differing}; remove {path} and {remedy}"
            )
        for name, entry in manifest["arrays"].items():
            _check_array_file(path / f"{name}.npy", entry, remedy)
        return cls(path, manifest, remedy)

    def verify(self) -> None:
        """Compare every byte with the checksums of the manifest (about a second per GB).

        Raises:
            DataError: if a chunk differs; the message names the file and the place.
        """
        for name, entry in self.manifest["arrays"].items():
            file = self.path / f"{name}.npy"
            found = chunk_checksums(file)
            wrong = [i for i, (a, b) in enumerate(zip(found, entry["crc32"], strict=True)) if a != b]
            if wrong:
                first = wrong[0]
                raise DataError(
                    f"{file}: damaged in the {CHUNK_BYTES:,} bytes from {first * CHUNK_BYTES:,}: "
                    f"checksum {found[first]:08x}, expected {entry['crc32'][first]:08x}; "
                    f"remove {self.path} and {self.remedy}"
                )

    def __len__(self) -> int:
        return int(self.manifest["count"])

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, mapped and read-only."""
        if self._arrays is None:
            # a plain view: indexing np.memmap itself is several times slower
            self._arrays = {
                name: np.load(self.path / f"{name}.npy", mmap_mode="r").view(np.ndarray)
                for name in self.manifest["arrays"]
            }
        return self._arrays

    def read(self, indices: list[int]) -> dict[str, NDArray[Any]]:
        """Copy the records with these `indices` `[B]` out of every array, `[B, ...]`."""
        return {name: array[indices] for name, array in self.arrays.items()}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": None}


def _read_manifest(path: Path, remedy: str) -> dict[str, Any]:
    file = path / MANIFEST
    if not path.exists():
        raise DataError(f"{path}: not found, expected a store; {remedy}")
    if not file.is_file():
        raise DataError(f"{path}: not a store (found no {MANIFEST}); remove it and {remedy}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not readable as JSON ({error}); remove {path} and {remedy}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{file}: not the manifest of a store, expected `format` to be {FORMAT!r}; {remedy}")
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{file}: format version {manifest.get('version')!r}, expected {VERSION}; "
            f"remove {path} and {remedy}"
        )
    for key in ("count", "settings", "arrays"):
        if key not in manifest:
            raise DataError(f"{file}: has no key `{key}`; remove {path} and {remedy}")
    return manifest


def _check_array_file(file: Path, entry: dict[str, Any], remedy: str) -> None:
    if not file.is_file():
        raise DataError(
            f"{file}: missing, expected {entry['bytes']:,} bytes; remove {file.parent} and {remedy}"
        )
    if (size := file.stat().st_size) != entry["bytes"]:
        raise DataError(
            f"{file}: {size:,} bytes, expected {entry['bytes']:,}; remove {file.parent} and {remedy}"
        )
    try:
        array = np.load(file, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise DataError(f"{file}: no NumPy array ({error}); remove {file.parent} and {remedy}") from error
    found, expected = (f"{array.dtype} {list(array.shape)}", f"{entry['dtype']} {entry['shape']}")
    if found != expected:
        raise DataError(f"{file}: found {found}, expected {expected}; remove {file.parent} and {remedy}")


class StoreWriter:
    """Writes a store record by record; a context manager, and only a clean exit makes the store appear.

    Args:
        path: the folder to make.
        name: the dataset.
        split: `train`, `val` or `test`.
        settings: what the data depend on; `Store.open` compares them.
        source: where the data come from, for people to read.

    Raises:
        DataError: on exit, if the disk is full.
    """

    def __init__(
        self, path: Path, name: str, split: str, settings: Mapping[str, Any], source: Mapping[str, Any]
    ) -> None:
        self.path = path
        self._settings = dict(settings)
        self._about = {"name": name, "split": split, "settings": self._settings, "source": dict(source)}
        self._folder = path.parent / f".{path.name}.{uuid.uuid4().hex}{_PARTIAL}"
        self._files: dict[str, _ArrayFile] = {}
        self._count = 0

    def __enter__(self) -> Self:
        _remove_leftovers(self.path.parent)
        self._folder.mkdir(parents=True)
        return self

    def append(self, records: Arrays) -> int:
        """Add `n` records, `[n, ...]` under the same names each time; returns `n`.

        Raises:
            ValueError: if names, dtypes, shapes or lengths do not agree.
        """
        lengths = {len(array) for array in records.values()}
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
        with open(self._folder / MANIFEST, "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            _to_disk(file)
        _sync_folder(self._folder)
        try:
            self._folder.rename(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # another process made the same store in the meantime; ours is dropped if theirs opens
            Store.open(self.path, "remove it and prepare again", self._settings)
        _sync_folder(self.path.parent)


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
        _to_disk(self._file)
        self._file.close()
        return {
            "dtype": str(self._dtype),
            "shape": [self._length, *self._record],
            "bytes": self.path.stat().st_size,
            "chunk_bytes": CHUNK_BYTES,
            "crc32": chunk_checksums(self.path),
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


def _to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(parent: Path, age: float = 24 * 3600) -> None:
    """Remove what a killed preparation left behind; young ones may belong to a running process."""
    for folder in parent.glob(f".*{_PARTIAL}"):
        newest = max((path.stat().st_mtime for path in [folder, *folder.glob("*")]), default=0.0)
        if time.time() - newest > age:
            shutil.rmtree(folder, ignore_errors=True)
