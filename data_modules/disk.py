"""Room on a disk, and numbers of bytes for people."""

import shutil
from pathlib import Path


def free_bytes(folder: Path) -> int:
    """Free space where a folder is or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def size_text(count: int) -> str:
    """A number of bytes for people."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} bytes"
