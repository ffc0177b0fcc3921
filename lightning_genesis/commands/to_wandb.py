"""What W&B is sent when a command of the Trainer is done: results as tables, checkpoints as artifacts."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, WandbLogger

from lightning_genesis.callbacks.checkpoints import RunCheckpoints
from lightning_genesis.commands.screen import results_of, rows_of
from lightning_genesis.evaluation.deviations import in_words
from lightning_genesis.report.names import metric_of
from lightning_genesis.runs.loggers import RunWandbLogger
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


def send_checkpoints(trainer: pl.Trainer, folder: Path) -> None:
    """Sends the best and the last checkpoint of a finished run, as versions of one artifact.

    Its name is `checkpoints-ID`, its aliases `best` and `last`. What goes wrong is said, and hurts nothing.

    Args:
        trainer: that has trained.
        folder: the run's.
    """
    best = next((c.best for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoints)), None)
    about = {BEST: {} if best is None else best._asdict(), LAST: {"step": trainer.global_step}}
    for logger in wandb_loggers(trainer):
        for name, metadata in about.items():
            if (folder / "checkpoints" / name).is_file():
                logger.log_checkpoint(folder / "checkpoints" / name, metadata)


def close_wandb(loggers: Sequence[Logger], failed: bool) -> None:
    """Ends the runs of W&B, which would otherwise stay open in this process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            close = partial(logger.experiment.finish, exit_code=int(failed))
            logger.guarded(close) if isinstance(logger, RunWandbLogger) else close()
