"""What a command of the Trainer says when it starts and when it is done."""

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_info
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from data_modules import SceneDataModule
from lightning_genesis.callbacks.checkpoints import RunCheckpoints
from lightning_genesis.callbacks.results import ResultWriter
from lightning_genesis.callbacks.terminal import clock, number
from lightning_genesis.evaluation.deviations import in_words
from lightning_genesis.evaluation.protocols import PROTOCOLS
from lightning_genesis.models import SceneModel
from lightning_genesis.report.names import metric_of, metric_order
from lightning_genesis.report.published import find_published
from lightning_genesis.runs.results import Result

MOST_ROWS = 10
"""Of the table that a test ends with."""
FIRST = ("ari_fg", "ari_fg_attention", "msc_fg", "msc_fg_attention", "elbo", "fid", "mse", "num_active")
"""Its rows after those of the protocol; the others follow in the report's order."""
NARROW = 60
"""Columns below which headings are short."""
PADDING = 3
"""Columns between two of a table."""


def say_opening(
    model: SceneModel, data: SceneDataModule, trainer: pl.Trainer, path: str | None, step: int
) -> None:
    """Says what is about to run, in two lines or three.

    Args:
        model: that runs.
        data: that it runs on.
        trainer: that runs it.
        path: of the checkpoint; None for new weights.
        step: of the checkpoint.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    count = f"{parameters / 1e6:.3g} M" if parameters >= 1e6 else f"{parameters / 1e3:.3g} k"
    count_of_devices = trainer.num_devices * trainer.num_nodes
    devices = trainer.strategy.root_device.type
    if count_of_devices > 1:
        devices = f"{count_of_devices} x {devices}"
    name = getattr(data, "name", None) or type(data).__name__
    rank_zero_info(
        f"{type(model).__name__}, {count} parameters; {name}, {data.image_size} px, {data.num_slots} slots; "
        f"batches of {data.batch_size} on {devices}"
    )
    if path is not None:
        rank_zero_info(f"from {path}, after step {step:,}")
    rank_zero_info(f"run folder: {trainer.default_root_dir}")


# ---------------------------------------------------------------- the end of a training


def closing(trainer: pl.Trainer, folder: Path, seconds: float) -> list[str]:
    """What came of a training and what to do next, in lines.

    Args:
        trainer: that has trained.
        folder: the run's.
        seconds: that it took.
    """
    rows = {"trained": f"to step {trainer.global_step:,} in {clock(seconds)}"}
    best = next((c.best for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoints)), None)
    if best is not None:
        at = "" if best.step is None else f" at step {best.step:,}"
        rows["best"] = f"{best.name} {number(best.value)}{at}"
    rows["folder"] = str(folder)
    if (folder / "pictures").is_dir():
        rows["pictures"] = str(folder / "pictures")
    if (place := _wandb_place(trainer)) is not None:
        rows["W&B"] = place
    config = shlex.quote(str(folder / "config.yaml"))
    rows["next"] = f"lightning-genesis test --config {config} --ckpt_path {'best' if best else 'last'}"
    rows[""] = f"lightning-genesis figures {shlex.quote(str(folder))}"
    return [f"{name:<9} {text}" for name, text in rows.items()]


def _wandb_place(trainer: pl.Trainer) -> str | None:
    """The address of a run of W&B, or the command that uploads all its parts: each command adds one."""
    for logger in trainer.loggers:
        if not isinstance(logger, WandbLogger) or logger._experiment is None:
            continue
        with suppress(Exception):  # its process may be gone
            if not logger.experiment.offline:
                return str(logger.experiment.url)
            folder = Path(logger.experiment.dir).parent
            with suppress(ValueError):
                folder = folder.relative_to(Path.cwd())
            parts = [*folder.parent.glob(f"offline-run-*-{logger.experiment.id}")]
            place = shlex.quote(str(folder))
            if len(parts) > 1:  # in the order of their start; those that were uploaded are left out
                place = f"{shlex.quote(str(folder.parent))}/offline-run-*-{logger.experiment.id}"
            return f"offline; to upload: wandb sync {place}"
    return None


# ---------------------------------------------------------------- the end of a test


def show_scores(trainer: pl.Trainer, stage: str) -> None:
    """Prints what a test or a validation found: a short table, where all of it is, and what differs.

    Args:
        trainer: that has evaluated.
        stage: "test" or "val".
    """
    written = results_of(trainer)
    width = Console().width if sys.stdout.isatty() else shutil.get_terminal_size().columns
    console = Console(width=width, highlight=False, soft_wrap=True)
    if not written:
        prefix = f"{stage}/"
        values = {
            name.removeprefix(prefix): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(prefix)
        }
        if values:
            console.print(_table([(name, values[name], None) for name in _order(values, ())], None, width))
        return
    _, result = written[-1]  # the protocol's, where there is one
    console.print(_table([*rows_of(result, MOST_ROWS)], result, width))
    if words := in_words(result.deviations, result.rules):
        # by words on a terminal; in a file nothing is cut
        console.print(f"differs from the paper: {'; '.join(words)}", soft_wrap=not sys.stdout.isatty())
    for file, _ in written:
        console.print(f"all numbers: {file}")
    if (place := _wandb_place(trainer)) is not None:
        console.print(f"W&B: {place}", soft_wrap=True, markup=False)


def results_of(trainer: pl.Trainer) -> list[tuple[Path, Result]]:
    """What a test has written, see `ResultWriter.written`; nothing where there is none."""
    callbacks: list[pl.Callback] = cast(Any, trainer).callbacks
    return [found for c in callbacks if isinstance(c, ResultWriter) for found in c.written]


def rows_of(result: Result, most: int | None) -> Iterator[tuple[str, float | None, float | None]]:
    """Names, values and published values, the latter in the unit of the report.

    Args:
        result: of a test.
        most: rows; all if None.
    """
    protocol = PROTOCOLS.get(result.protocol or "")  # type: ignore[call-overload]
    headline = protocol.headline_of(result.dataset) if protocol else ()
    for name in _order(result.metrics, headline, most):
        cells = find_published(result.experiment, name, result.protocol) if protocol else []
        yield name, result.metrics[name], cells[0].mean if cells else None


def _order(metrics: Mapping[str, Any], headline: Sequence[str], most: int | None = MOST_ROWS) -> list[str]:
    """The metrics to show, the most important first."""
    by_attention = [name for base in headline for name in (base, f"{base}_attention")]
    wanted = [*by_attention, *FIRST, *sorted(metrics, key=metric_order)]
    return [name for name in dict.fromkeys(wanted) if name in metrics][:most]


def _table(
    rows: Sequence[tuple[str, float | None, float | None]], result: Result | None, width: int
) -> Table:
    compared = any(published is not None for *_, published in rows)
    title = None
    if result is not None:
        rules = f" by protocol {result.protocol}" if result.protocol else ""
        title = f"{result.run}: {result.num_images:,} {result.split} images{rules}"
    headings = ("", "here", *(("paper", "difference" if width >= NARROW else "diff.") if compared else ()))
    cells = [_cells(*row, compared=compared) for row in rows]
    longest = [max(len(row[column]) for row in (headings, *cells)) for column in range(len(headings))]
    room = width - sum(length + PADDING for length in longest[1:]) - PADDING - 1
    table = Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="right" if heading else "left")
    for label, *others in cells:
        table.add_row(label if len(label) <= room else f"{label[: room - 1]}…", *others)
    return table


def _cells(name: str, value: float | None, published: float | None, compared: bool) -> list[str]:
    metric = metric_of(name)
    shown = None if value is None else value * metric.factor
    cells = [metric.label, "not finite" if shown is None else number(shown)]
    if compared and (published is None or shown is None):
        return [*cells, "" if published is None else number(published), ""]
    if compared and published is not None and shown is not None:
        decimals = len(cells[1].partition(".")[2])
        return [*cells, number(published), f"{shown - published:+,.{decimals}f}"]
    return cells
