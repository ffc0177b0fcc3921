"""One process at a time writes into a run's folder."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pytorch_lightning.utilities import rank_zero_warn

from lightning_genesis.errors import ConfigurationError

LOCK = "fit.lock"
"""In a run's folder; its text says who holds it."""
_HELD = (errno.EACCES, errno.EAGAIN)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is made if need be; what was made and stays empty is removed.

    The lock is the process's own: its loaders do not inherit it, and the system releases it when the process
    dies, however it dies.

    Raises:
        ConfigurationError: if another process is writing there.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    file = _locked(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            if os.listdir(folder) == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()
                for parent in made:  # the innermost first; one that others use by now is not empty
                    parent.rmdir()
        file.close()


def _locked(folder: Path) -> IO[str]:
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (closed when the run is over)
        except FileNotFoundError:  # the holder has just removed the empty folder
            continue
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                rank_zero_warn(f"{path}: no locks here ({error.strerror}): do not start this run twice")
                return file
            file.seek(0)
            holder = " ".join(file.read(200).split()) or "another process"
            file.close()
            raise ConfigurationError(
                f"{folder}: {holder} is training this run; wait for it, or give this one another name with "
                "--run.name"
            ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()  # it was removed before we had it
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
