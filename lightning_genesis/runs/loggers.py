"""Where numbers go: always a CSV file in the run's folder, and W&B, online where it can be, else offline."""

import csv
import netrc
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only


class _AppendingWriter(ExperimentWriter):
    """Lightning's CSV writer, except that it goes on with a file that is there."""

    def __init__(self, log_dir: str, file_name: str) -> None:
        self.NAME_METRICS_FILE = file_name
        super().__init__(log_dir)
        if os.path.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def _check_log_dir_exists(self) -> None:
        """Keeps what is there; a resumed run continues it."""

    def save(self) -> None:
        """Writes the rows, durably: a checkpoint that is saved next must not be ahead of its log."""
        if self.metrics:
            super().save()
            with open(self.metrics_file_path) as file:
                os.fsync(file.fileno())

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Lightning's, except that a run killed meanwhile keeps its rows."""
        rewrite(Path(self.metrics_file_path), fieldnames, lambda row: True)


class RunCSVLogger(CSVLogger):
    """Appends to one CSV file of a run's folder.

    Args:
        folder: the run's folder.
        file_name: the file in it.
    """

    def __init__(self, folder: Path, file_name: str) -> None:
        super().__init__(save_dir=folder, name="", version="")
        self._file_name = file_name
        self.latest: dict[str, float] = {}
        """The newest value of everything logged, for the progress bar."""

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.save_dir)

    @property
    def experiment(self) -> _AppendingWriter:
        """The writer, made when the first row comes."""
        if not isinstance(self._experiment, _AppendingWriter):
            self._experiment = _AppendingWriter(self.log_dir, self._file_name)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Adds a row."""
        self.latest.update({name: float(value) for name, value in metrics.items()})
        super().log_metrics(metrics, step)

    @rank_zero_only
    def drop_after(self, step: int) -> None:
        """Removes rows later than `step`: a killed run may have logged beyond its last checkpoint."""
        path = Path(self.log_dir) / self._file_name
        if step == 0:  # its header may be incomplete too
            path.unlink(missing_ok=True)
            self.experiment.metrics_keys = []
        elif path.is_file():
            rewrite(path, None, lambda row: _number(row.get("step")) < step)


def rewrite(path: Path, columns: list[str] | None, keep: Callable[[dict[str, str]], bool]) -> None:
    """Writes a CSV file anew, with other columns or fewer rows, under a temporary name first."""
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        columns = columns or list(reader.fieldnames or ())
        rows = [row for row in reader if keep(row)]
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def _number(text: str | None) -> float:
    try:
        return float(text or "inf")
    except ValueError:  # the row was being written when the run was killed
        return float("inf")


def make_wandb_logger(folder: Path, name: str) -> WandbLogger:
    """A W&B logger that neither blocks nor asks: without an account or a connection it works offline.

    The id of the run is kept in the folder, so that a resumed run continues it. `WANDB_MODE`, if set, decides
    alone; `WANDB_PROJECT` names another project. In a sweep of W&B, its agent chooses the id and the project.
    """
    import wandb

    offline = not os.environ.get("WANDB_MODE") and not _wandb_answers()
    if offline:
        rank_zero_info(f"W&B: no account or no connection; offline, files in {folder / 'wandb'}")
    identity = folder / "wandb-id.txt"
    if not identity.is_file() and getattr(rank_zero_only, "rank", 0) == 0:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = identity.with_suffix(".tmp")
        temporary.write_text(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
        temporary.replace(identity)
    run_id = identity.read_text().strip() if identity.is_file() else None
    project = os.environ.get("WANDB_PROJECT", "lightning-genesis")
    settings = wandb.Settings(silent=True, console="off") if offline else None
    logger = WandbLogger(
        name=name,
        save_dir=folder.resolve(),  # W&B's service keeps the working directory that it was started in
        id=run_id,
        project=project,
        offline=offline,
        resume="allow",
        settings=settings,
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning 2.6 sets it, W&B warns that it means nothing
    return logger


def _wandb_answers() -> bool:
    """Whether there is an account to log in with and a server that takes connections."""
    server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host = server.hostname or ""
    key = os.environ.get("WANDB_API_KEY")
    if not key:
        try:
            key = (netrc.netrc().authenticators(host) or (None,))[-1]
        except (OSError, netrc.NetrcParseError):
            key = None
    if not key:
        return False
    try:
        socket.create_connection((host, server.port or 443), timeout=3.0).close()
    except OSError:
        return False
    return True
