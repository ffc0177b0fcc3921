"""Where numbers go: always a CSV file in the run's folder, and W&B, online where it can be, else offline."""

import csv
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning_fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from lightning_genesis.errors import ConfigurationError
from lightning_genesis.runs.wandb_account import answers, has_key
from lightning_genesis.storage.files import replacing

WANDB_ID = "wandb-id.txt"
"""In a run's folder: the id of its run of W&B, and the folder that it was made for."""


class _WandbId(NamedTuple):
    """What a `wandb-id.txt` says."""

    run_id: str | None
    folder: Path | None


class _AppendingWriter(ExperimentWriter):
    """Lightning's CSV writer, except that it goes on with a file that is there."""

    def __init__(self, log_dir: str, file_name: str) -> None:
        self.NAME_METRICS_FILE = file_name
        super().__init__(log_dir)
        if os.path.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, encoding="utf-8", newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def _check_log_dir_exists(self) -> None:
        """Keeps what is there; a resumed run continues it."""

    def save(self) -> None:
        """Writes the rows, durably: a checkpoint that is saved next must not be ahead of its log.

        Raises:
            ConfigurationError: if they cannot be written.
        """
        if not self.metrics:
            return
        try:
            if not os.path.isdir(self.log_dir):
                rank_zero_warn(f"{self.log_dir} was deleted under the run; it is made anew")
                os.makedirs(self.log_dir)
            super().save()
            with open(self.metrics_file_path, encoding="utf-8") as file:
                os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or error
            raise ConfigurationError(
                f"{self.metrics_file_path}: cannot be written ({reason}); the run stops, its last checkpoint "
                "is what it was"
            ) from error

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


SUMMARIES = {
    **dict.fromkeys(("val/ari_fg", "val/ari_fg_attention", "val/msc_fg", "val/elbo"), "max,last"),
    **dict.fromkeys(("val/mse",), "min,last"),
    **dict.fromkeys(("train/loss",), "last"),
}
"""What W&B's table of runs shows of a metric: the best of a run, not only its last value."""
WANDB_AXIS = "trainer/global_step"


class RunWandbLogger(WandbLogger):
    """W&B's logger, except that the run goes on without it when its process has died."""

    at_step: int | None = None
    """What everything is logged under: a test is of a checkpoint, and its Trainer stands at step 0."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run. When it starts, metrics get their axis, the optimiser's step, and `SUMMARIES`."""
        starts = self._experiment is None
        run = super().experiment
        if starts and callable(getattr(run, "define_metric", None)):
            for name, summary in SUMMARIES.items():
                run.define_metric(name, step_metric=WANDB_AXIS, step_sync=True, summary=summary)
        return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs a row; see `guarded`."""
        step = step if self.at_step is None else self.at_step
        self.guarded(lambda: WandbLogger.log_metrics(self, metrics, step))

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **options: Any) -> None:
        """Logs pictures; see `guarded`."""
        self.guarded(lambda: WandbLogger.log_image(self, key, images, step, **options))

    @rank_zero_only
    def log_video(self, key: str, videos: list[Any], step: int | None = None, **options: Any) -> None:
        """Logs films; see `guarded`."""
        self.guarded(lambda: WandbLogger.log_video(self, key, videos, step, **options))

    @rank_zero_only
    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Sets values of the run that belong to no step; see `guarded`."""
        self.guarded(lambda: self.experiment.summary.update(dict(values)))

    @rank_zero_only
    def log_checkpoint(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Keeps a file as a version of the artifact `checkpoints-ID`; its alias is the file's name.

        W&B copies it, to send it when the run is closed. What goes wrong is said, and the run goes on.
        """
        import wandb

        try:
            artifact = wandb.Artifact(f"checkpoints-{self.experiment.id}", "model", metadata=dict(metadata))
            artifact.add_file(str(path))
            self.experiment.log_artifact(artifact, aliases=[path.stem])
        except Exception as error:  # which of its errors is not documented
            rank_zero_warn(f"W&B: {path} is not kept as an artifact ({_reason(error)})")

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Logs values of the configuration; see `guarded`."""
        self.guarded(lambda: WandbLogger.log_hyperparams(self, params))

    def guarded(self, call: Callable[[], Any]) -> None:
        """Calls what talks to W&B's process. If that is gone, says so once, and nothing is sent any more."""
        import wandb

        if isinstance(self._experiment, _DummyExperiment):
            return
        try:
            call()
        except Exception as error:  # which of its errors is not documented
            rank_zero_warn(f"W&B: its process does not answer ({_reason(error)}); the run goes on without it")
            with suppress(Exception):  # it would be asked once more when Python ends
                wandb.teardown()
            wandb.run = None  # or the next run in this process would go on with it
            self._experiment = _DummyExperiment()  # type: ignore[assignment]


def rewrite(path: Path, columns: list[str] | None, keep: Callable[[dict[str, str]], bool]) -> None:
    """Writes a CSV file anew, with other columns or fewer rows, under a temporary name first."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = columns or list(reader.fieldnames or ())
        rows = [row for row in reader if keep(row)]
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def _number(text: str | None) -> float:
    try:
        return float(text or "inf")
    except ValueError:  # the row was being written when the run was killed
        return float("inf")


def _can_copy() -> bool:
    """Whether W&B can write where it copies what it sends to, as a rule at home."""
    from wandb.env import get_data_dir

    place = Path(get_data_dir()).absolute()
    there = next(path for path in (place, *place.parents) if os.path.lexists(path))
    return there.is_dir() and os.access(there, os.W_OK)


def make_wandb_logger(
    folder: Path,
    name: str,
    *,
    group: str | None = None,
    tags: list[str] | None = None,
    notes: str | None = None,
    header: str | None = None,
    at_step: int | None = None,
) -> RunWandbLogger:
    """A W&B logger that neither blocks nor asks: without an account or a connection it works offline.

    The id of the run is kept in the folder, so that a resumed run continues it, also from a new place; a copy
    gets an id of its own. `WANDB_MODE`, if set, decides alone; `WANDB_PROJECT` names another project. In a
    sweep of W&B, its agent chooses the id and the project.

    Args:
        folder: the run's.
        name: shown for it.
        group: that it is shown in; `WANDB_RUN_GROUP` if None, which `sweep` sets.
        tags: of the run.
        notes: on the run; `header` if None.
        header: of the experiment's file.
        at_step: see `RunWandbLogger`.
    """
    import wandb

    offline = not os.environ.get("WANDB_MODE") and not (has_key() and answers())
    if offline:
        rank_zero_info(f"W&B: no account or no connection; offline, files in {folder / 'wandb'}")
    if "WANDB_DATA_DIR" not in os.environ and not _can_copy():
        os.environ["WANDB_DATA_DIR"] = str(folder.resolve() / "wandb")
    run_id = _wandb_id(folder)
    project = os.environ.get("WANDB_PROJECT", "lightning-genesis")
    # the command says itself where the run is; of twenty lines more nobody reads one
    settings = wandb.Settings(silent=True, console="off" if offline else "auto")
    logger = RunWandbLogger(
        name=name,
        save_dir=folder.resolve(),  # W&B's service keeps the working directory that it was started in
        id=run_id,
        project=project,
        offline=offline,
        resume="allow",
        group=group,
        tags=tags,
        notes=header if notes is None else notes,
        settings=settings,
    )
    logger.at_step = at_step
    logger._wandb_init.pop("anonymous", None)  # Lightning 2.6 sets it, W&B warns that it means nothing
    return logger


def _wandb_id(folder: Path) -> str | None:
    """The id in a run's folder; rank zero makes one where there is none, or only another folder's."""
    file = folder / WANDB_ID
    found = _read_wandb_id(file)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return found.run_id
    here = folder.resolve()
    run_id = found.run_id
    if run_id is not None and found.folder not in (None, here) and _is_at_home(found, folder):
        rank_zero_info(f"W&B: {folder} is a copy of {found.folder}; it goes on as a run of its own")
        run_id = None
    run_id = run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    if (run_id, here) != found:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(f"{run_id}\n{here}\n", encoding="utf-8", errors="surrogateescape")
    return run_id


def _is_at_home(found: _WandbId, folder: Path) -> bool:
    """Whether the run of an id lies, apart from `folder`, in the folder that it was made for."""
    assert found.folder is not None
    original = found.folder / WANDB_ID
    return (
        original.is_file()
        and not original.samefile(folder / WANDB_ID)
        and _read_wandb_id(original).run_id == found.run_id
    )


def _read_wandb_id(file: Path) -> _WandbId:
    try:
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return _WandbId(None, None)
    run_id, folder = (*(line.strip() or None for line in lines), None, None)[:2]
    return _WandbId(run_id, None if folder is None else Path(folder))
