"""The one on-disk form that training reads: memory-mapped arrays and a manifest.

A store is a folder per split:

    images.npy          uint8 `[N, H, W, 3]`
    segmentations.npy   uint8 `[N, H, W]`, where the dataset has masks
    labels.<key>.npy    `[N]`, objects.<key>.npy `[N, M, ...]`, where it has them
    flat.<key>.npy      uint8 `[bytes]`: content of any length, such as JPEGs; the places of the pieces are in
                        an array with one row per record
    manifest.json       format version, source, settings, shapes, checksums

It is written beside its place and renamed into it, so a store either opens or does not exist. Every
part of it is compared with its checksum before this process first reads from it.
"""

import contextlib
import hashlib
import json
import math
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "lightning-genesis store"
VERSION = 2
"""Version 1 had no checksum of the manifest and larger chunks; it is still read."""
CHUNK_BYTES = 2**20
"""Bytes under one checksum: a record at a random place costs the check of this many."""
MANIFEST = "manifest.json"
PARTIAL = ".partial"
"""How the name of a folder that is not whole yet ends."""
FLAT = "flat."
"""What an array's name begins with if its length is not the number of records."""

Arrays = Mapping[str, NDArray[Any]]
"""Arrays of one length by name."""


class DataError(Exception):
    """Data, or settings that name them, are not as expected; the message is one line and says what to do."""

    def __init__(self, message: str) -> None:
        # raised in a loader's process it comes back with a traceback around it, of which our line is the last
        message = message.rstrip().rpartition("DataError: ")[2]
        # names of files may have anything in them: one line, that every terminal and log can take
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def chunk_checksums(path: Path, chunk_bytes: int) -> list[int]:
    """CRC-32 of every `chunk_bytes` of a file."""
    with open(path, "rb") as file:
        return [zlib.crc32(chunk) for chunk in iter(lambda: file.read(chunk_bytes), b"")]


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
        # what this process has compared with the checksums: per record, and per chunk of every file
        self._checked: NDArray[np.bool_] | None = None
        self._seen: dict[str, NDArray[np.bool_]] = {}

    @classmethod
    def open(
        cls,
        path: Path,
        remedy: str = "prepare it again",
        settings: Mapping[str, Any] | None = None,
        split: str | None = None,
    ) -> "Store":
        """Open a store and check its manifest, file sizes, dtypes and shapes.

        Args:
            path: the folder.
            remedy: what the reader should do if it does not open, e.g. the `prepare` command.
            settings: what the store must have been made with; None takes any.
            split: which split it must be; None takes any.

        Raises:
            DataError: if it is missing, of another version, settings or split, or damaged.
        """
        manifest = _read_manifest(path, remedy)
        if settings is not None and manifest["settings"] != dict(settings):
            found, expected = manifest["settings"], dict(settings)
            keys = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
            differing = "; ".join(f"`{k}` is {found.get(k)!r}, expected {expected.get(k)!r}" for k in keys)
            raise DataError(
                f"{path / MANIFEST}: made with other settings: {differing}; remove {path} and {remedy}"
            )
        if split is not None and manifest["split"] != split:
            raise DataError(
                f"{path / MANIFEST}: is the split {manifest['split']!r}, expected {split!r}; "
                f"remove {path} and {remedy}"
            )
        for name, entry in manifest["arrays"].items():
            _map_array(path / f"{name}.npy", entry, remedy)
        return cls(path, manifest, remedy)

    def verify(self) -> None:
        """Compare every byte with the checksums of the manifest (about a second per GB).

        Raises:
            DataError: if a chunk differs; the message names the file and the place.
        """
        for name, entry in self.manifest["arrays"].items():
            with self._reading(name):
                found = chunk_checksums(self._file(name), entry["chunk_bytes"])
            for chunk in range(len(entry["crc32"])):
                self._compare(name, chunk, found[chunk] if chunk < len(found) else 0)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.npy"

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _unreadable(self._file(name), error, self.path, self.remedy) from error

    def _compare(self, name: str, chunk: int, found: int) -> None:
        entry = self.manifest["arrays"][name]
        length = entry["chunk_bytes"]
        expected = entry["crc32"][chunk]
        if found != expected:
            raise DataError(
                f"{self._file(name)}: damaged in the {length:,} bytes from {chunk * length:,}: "
                f"checksum {found:08x}, expected {expected:08x}; remove {self.path} and {self.remedy}"
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which has checksums of all contents."""
        if "sha256" in self.manifest:
            return str(self.manifest["sha256"])
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self.manifest["count"])

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, mapped and read-only, not compared with the checksums: `verify` does that."""
        if self._arrays is None:
            entries = self.manifest["arrays"].items()
            # a plain view: indexing np.memmap itself is several times slower
            self._arrays = {
                name: _map_array(self._file(name), entry, self.remedy).view(np.ndarray)
                for name, entry in entries
            }
        return self._arrays

    def read(self, indices: list[int]) -> dict[str, NDArray[Any]]:
        """Copy the records with these `indices` `[B]` out of every array, `[B, ...]`.

        Chunks that this process has not read before are compared with their checksums.

        Raises:
            DataError: if one differs; the message names the file and the place.
        """
        if self._checked is None:
            self._checked = np.zeros(len(self), np.bool_)
        if not self._checked[indices].all():
            self._check(np.asarray(indices) % len(self))
            self._checked[indices] = True
        return {name: array[indices] for name, array in self.arrays.items() if not name.startswith(FLAT)}

    def read_pieces(
        self, name: str, starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> list[NDArray[np.uint8]]:
        """Copy pieces out of a flat array, `[B]` of any lengths from `starts` to below `ends`, both `[B]`.

        Raises:
            DataError: as `read`.
        """
        entry = self.manifest["arrays"][name]
        first, _ = _chunks_of(starts, entry)
        _, last = _chunks_of(ends - 1, entry)
        self._check_chunks(name, first, last)
        array = self.arrays[name]
        return [array[start:end].copy() for start, end in zip(starts, ends, strict=True)]

    def _check(self, indices: NDArray[np.intp]) -> None:
        """Compare the chunks of records with their checksums, each once."""
        for name, entry in self.manifest["arrays"].items():
            if not name.startswith(FLAT):
                self._check_chunks(name, *_chunks_of(indices, entry))

    def _check_chunks(self, name: str, first: NDArray[np.intp], last: NDArray[np.intp]) -> None:
        """Compare the chunks from each `first` to each `last` with their checksums, each once.

        Threads may do so at once. Read, not mapped: a file that has become shorter in the meantime is an
        error here, and would end the process there.
        """
        entry = self.manifest["arrays"][name]
        length, count = entry["chunk_bytes"], len(entry["crc32"])
        seen = self._seen.setdefault(name, np.zeros(count, np.bool_))
        # up where a record's chunks begin, down after they end: the running sum counts the records there
        edges = np.bincount(first, minlength=count + 1) - np.bincount(last + 1, minlength=count + 1)
        missing = np.flatnonzero((edges.cumsum()[:count] > 0) & ~seen)
        if not len(missing):
            return
        with self._reading(name), open(self._file(name), "rb") as file:
            for chunk in missing.tolist():
                self._compare(name, chunk, zlib.crc32(os.pread(file.fileno(), length, chunk * length)))
                seen[chunk] = True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": None, "_checked": None, "_seen": {}}


def _read_manifest(path: Path, remedy: str) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        if not path.exists():
            raise DataError(f"{path}: not found, expected a store; {remedy}")
        if not file.is_file():
            raise DataError(f"{path}: not a store (found no {MANIFEST}); remove it and {remedy}")
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(file, error, path, remedy) from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{file}: not readable as JSON ({reason}); remove {path} and {remedy}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{file}: not the manifest of a store, expected `format` to be {FORMAT!r}; {remedy}")
    if manifest.get("version") not in (1, VERSION):
        raise DataError(
            f"{file}: format version {manifest.get('version')!r}, expected {VERSION}; "
            f"remove {path} and {remedy}"
        )
    if problem := _manifest_problem(manifest):
        raise DataError(f"{file}: {problem}; remove {path} and {remedy}")
    return manifest


def _manifest_problem(manifest: dict[str, Any]) -> str | None:
    """What is wrong with the keys, types, numbers or the checksum of a manifest."""
    types: dict[str, type] = {"version": int, "split": str, "settings": dict, "count": int, "arrays": dict}
    problem = _type_problem(manifest, types)
    if problem is None and (manifest["version"] != 1 or "sha256" in manifest):
        found, expected = manifest_digest(manifest), manifest.get("sha256")
        problem = None if found == expected else f"damaged: SHA-256 {found}, expected {expected!r}"
    if problem is not None:
        return problem
    types = {"dtype": str, "shape": list, "bytes": int, "chunk_bytes": int, "crc32": list}
    for name, entry in manifest["arrays"].items():
        where = f"`arrays` {name!r}"
        if not isinstance(entry, dict):
            return f"{where} is {entry!r}, expected a dict"
        if (problem := _type_problem(entry, types)) is not None:
            return f"{where} {problem}"
        if Path(name).name != name or not all(
            type(n) is int and n >= 0 for n in entry["shape"] + entry["crc32"]
        ):
            return f"{where} is no entry of an array"
        if entry["shape"][:1] != [manifest["count"]] and not name.startswith(FLAT):
            return f"{where} has shape {entry['shape']}, expected `count` {manifest['count']} records"
        length = max(1, entry["chunk_bytes"])
        if len(entry["crc32"]) != -(-entry["bytes"] // length):
            return f"{where} has {len(entry['crc32'])} checksums for {entry['bytes']:,} bytes"
    return None


def _type_problem(found: dict[str, Any], types: Mapping[str, type]) -> str | None:
    for key, kind in types.items():
        if key not in found:
            return f"has no key `{key}`"
        if type(found[key]) is not kind:
            return f"`{key}` is {found[key]!r}, expected {kind.__name__}"
        if kind is int and found[key] < 0:
            return f"`{key}` is {found[key]}, expected 0 or more"
    return None


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own, in a form that does not depend on order or spaces."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _map_array(file: Path, entry: dict[str, Any], remedy: str) -> NDArray[Any]:
    """Map a file that is what its entry in the manifest says."""
    folder = file.parent
    try:
        if not file.is_file():
            raise DataError(
                f"{file}: missing, expected {entry['bytes']:,} bytes; remove {folder} and {remedy}"
            )
        if (size := file.stat().st_size) != entry["bytes"]:
            raise DataError(
                f"{file}: {size:,} bytes, expected {entry['bytes']:,}; remove {folder} and {remedy}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers of Python 2
            array = np.lib.format.open_memmap(file, mode="r")
    except DataError:
        raise
    except OSError as error:
        raise _unreadable(file, error, folder, remedy) from error
    except Exception as error:  # NumPy evaluates the header; for rubbish its parser may raise anything
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{file}: no NumPy array ({reason}); remove {folder} and {remedy}") from error
    found, expected = (f"{array.dtype} {list(array.shape)}", f"{entry['dtype']} {entry['shape']}")
    if found != expected:
        raise DataError(f"{file}: found {found}, expected {expected}; remove {folder} and {remedy}")
    # the header says where the numbers begin and in which order they are
    if not array.flags.c_contiguous or array.offset + array.nbytes != size:
        raise DataError(f"{file}: no NumPy array (damaged header); remove {folder} and {remedy}")
    return array


def _chunks_of(indices: NDArray[np.intp], entry: dict[str, Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First and last chunk of each record."""
    record = np.dtype(entry["dtype"]).itemsize * math.prod(entry["shape"][1:])
    start = entry["bytes"] - entry["shape"][0] * record + indices * record
    end = np.maximum(start, start + record - 1)
    final = len(entry["crc32"]) - 1
    return np.minimum(start // entry["chunk_bytes"], final), np.minimum(end // entry["chunk_bytes"], final)


def _unreadable(file: Path, error: OSError, folder: Path, remedy: str) -> DataError:
    return DataError(
        f"{file}: cannot be read ({error.strerror or error}); see to {folder}, or remove it and {remedy}"
    )
