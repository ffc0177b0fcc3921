"""HDF5 files of others: what is missing, damaged or a link to elsewhere is one line."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_modules.store import DataError


def import_h5py() -> Any:
    """The library that reads HDF5 files.

    Raises:
        DataError: if it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            "h5py: not installed, expected it for HDF5 files; run `pip install lightning-genesis[hdf5]`"
        ) from error
    return h5py


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An HDF5 file; whatever h5py finds wrong with it is an error that names it."""
    h5py = import_h5py()
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"{path}: not readable as HDF5 ({reason}); get the file again") from error


def member(file: Any, names: Sequence[str], path: Path) -> Any:
    """An array of a file by the names of its groups and its own, which has to be in the file itself.

    Raises:
        DataError: if it is missing, no array, or a link to elsewhere.
    """
    h5py = import_h5py()
    found, name = file, "/".join(names)
    for part in names:
        if not isinstance(found, h5py.Group) or not isinstance(found.get(part, getlink=True), h5py.HardLink):
            raise DataError(f"{path}: no `{name}` in the file, expected an array there")
        found = found[part]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual or not found.ndim:
        raise DataError(f"{path}: `{name}` is no array of the file itself, expected one")
    return found
