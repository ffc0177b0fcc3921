"""A dataset's files, brought to their folder or found in it, and what the manifest says of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from data_modules.raw.download import download
from data_modules.raw.raw_file import RawFile, file_record, with_checksum
from data_modules.store import DataError


def fetch(
    files: Sequence[RawFile], folder: Path, console: Console, remedy: str | None
) -> list[dict[str, Any]]:
    """Download what is missing, and compare all with what is known of it.

    Args:
        files: checksum files before the files they are of.
        folder: where they are.
        console: shows the progress.
        remedy: what a user can do if a download fails; None downloads nothing.

    Returns:
        The manifest's record of every file that is there.

    Raises:
        DataError: if a file is not to be had, or is another one.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    records = []
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for known in files:
            file = with_checksum(known, folder)
            if remedy is not None:
                try:
                    download(file, folder, progress, remedy=remedy)
                except DataError as error:
                    if not file.optional:
                        raise
                    rank_zero_warn(f"going on without it: {error}")
            if not (folder / file.name).is_file():
                continue
            if file.checksum_names and file.md5 is None:
                names = " or ".join(file.checksum_names)
                rank_zero_warn(
                    f"{folder / file.name}: no {names} beside it, so it is not compared with the publisher's "
                    "checksum"
                )
            records.append(file_record(file, folder, progress))
    return records


def with_way_out(error: DataError, ours: Sequence[Path]) -> DataError:
    """The error; about what we fetched or unpacked it says what to remove, so that it is made anew."""
    found = next((path for path in ours if str(path) in str(error)), None)
    if found is None or "remove" in str(error):
        return error
    return DataError(f"{error}; remove {found} and run the same command again")
