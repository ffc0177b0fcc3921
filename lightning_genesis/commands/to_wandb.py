"""What W&B is sent when a command is done: results and reports as tables, checkpoints as artifacts."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, WandbLogger

from lightning_genesis.callbacks.checkpoints import RunCheckpoints
from lightning_genesis.commands.screen import results_of, rows_of
from lightning_genesis.evaluation.deviations import in_words
from lightning_genesis.report.names import metric_of
from lightning_genesis.report.runs import Run
from lightning_genesis.report.tables import Section
from lightning_genesis.report.writers import FIELDS, entries
from lightning_genesis.runs.loggers import WANDB_ID, RunWandbLogger, make_wandb_logger
from lightning_genesis.runs.run import BEST, LAST

COLUMNS = ("metric", "here", "paper", "difference")


def wandb_loggers(trainer: pl.Trainer) -> Iterator[RunWandbLogger]:
    """Ours among the loggers of a Trainer."""
    yield from (logger for logger in trainer.loggers if isinstance(logger, RunWandbLogger))


def send_results(trainer: pl.Trainer) -> None:
    """Sends what a test has found, as `tables/SPLIT` or `tables/PROTOCOL`, and how it differs from the paper.

    Args:
        trainer: that has tested.
    """
    for logger in wandb_loggers(trainer):
        for _, result in results_of(trainer):
            name = result.protocol or result.split
            cells = [_cells(*row) for row in rows_of(result, most=None)]
            logger.log_table(f"tables/{name}", columns=[*COLUMNS], data=cells)
            logger.log_summary({f"{name}/differs": "; ".join(in_words(result.deviations, result.rules))})


def _cells(name: str, value: float | None, published: float | None) -> list[str | float | None]:
    metric = metric_of(name)
    here = None if value is None else value * metric.factor
    difference = None if here is None or published is None else here - published
    return [metric.label, here, published, difference]


def send_end(trainer: pl.Trainer, folder: Path, artifacts: bool) -> None:
    """Sends what came of a finished run: the best score, `best/NAME`, of all its parts, and its step.

    Args:
        trainer: that has trained.
        folder: the run's.
        artifacts: send the best and the last checkpoint as well, as versions of one artifact, with the
            aliases `best` and `last`.
    """
    best = next((c.best for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoints)), None)
    about = {BEST: {} if best is None else best._asdict(), LAST: {"step": trainer.global_step}}
    for logger in wandb_loggers(trainer):
        if best is not None:  # W&B's own maximum is of the part that is resumed
            logger.log_summary({f"best/{best.name}": best.value, "best/step": best.step})
        for name, metadata in about.items() if artifacts else ():
            if (folder / "checkpoints" / name).is_file():
                logger.log_checkpoint(folder / "checkpoints" / name, metadata)


def send_report(runs: Sequence[Run], sections: Sequence[Section]) -> tuple[int, list[Path]]:
    """Sends the tables of a report to the W&B runs of all its runs that have one.

    `tables/report` has every cell. `report/PROTOCOL/METRIC/mean`, `std` and `seeds`, in the unit of the
    tables, are of the cells that a run is part of.

    Args:
        runs: of the report.
        sections: of the report.

    Returns:
        to how many runs, and the folders of what has to be uploaded, where they are offline.
    """
    cells = [[entry.get(name) for name in FIELDS] for entry in entries(sections)]
    offline = []
    logged = [run for run in runs if (run.folder / WANDB_ID).is_file()]
    for run in logged:
        step = max((found.checkpoint.step for found in run.results if found.checkpoint), default=None)
        logger = make_wandb_logger(run.folder, run.folder.resolve().name, at_step=step)
        logger.log_table("tables/report", columns=[*FIELDS], data=cells)
        logger.log_summary(_of_run(run, sections))
        with suppress(Exception):  # its process may be gone
            if logger.experiment.offline:
                offline.append(Path(logger.experiment.dir).parent)
        close_wandb([logger], failed=False)
    return len(logged), offline


def _of_run(run: Run, sections: Sequence[Section]) -> dict[str, float]:
    values: dict[str, float] = {}
    for section in sections:
        rows = [row for table in section.tables for row in table.rows]
        for column, cell in ((column, cell) for row in rows for column, cell in row.cells.items()):
            if run.name in cell.runs:
                key = f"report/{section.protocol or section.split}/{column.metric}"
                values[f"{key}/mean"], values[f"{key}/seeds"] = cell.summary.mean, cell.summary.count
                if cell.summary.std is not None:
                    values[f"{key}/std"] = cell.summary.std
    return values


def close_wandb(loggers: Sequence[Logger], failed: bool) -> None:
    """Ends the runs of W&B, which would otherwise stay open in this process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            close = partial(logger.experiment.finish, exit_code=int(failed))
            logger.guarded(close) if isinstance(logger, RunWandbLogger) else close()
