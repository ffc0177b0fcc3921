"""What a run shows while it goes on: one bar, and a line for every validation.

Nothing is read from the device for it: the bar shows what was logged already, and is drawn anew by time.
"""

import logging
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter
from typing import Any, TextIO

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Timer
from pytorch_lightning.callbacks.progress.progress_bar import ProgressBar
from rich.console import Console
from rich.live import Live
from rich.text import Text

from lightning_genesis.runs.loggers import RunCSVLogger

REFRESH = 0.5
"""Seconds between two drawings."""
MEMORY = 600.0
"""Seconds of which the speed is taken."""
FIRST_LINE, SLOWEST = 15.0, 600.0
"""Without a terminal: seconds to the first line, and the longest between two."""
SHORTEST, LONGEST = 8, 30
"""Characters of the bar."""
FULL, EMPTY, GAP = "━", "─", "  "
SCORES = (("ari_fg", "ARI-FG"), ("ari_fg_attention", "by attention"), ("mse", "MSE"), ("elbo", "ELBO"))
"""What the line of a validation has, where it is logged."""


# ---------------------------------------------------------------- text


def number(value: float) -> str:
    """Three digits, and no fewer than those before the point."""
    if not isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def clock(seconds: float) -> str:
    """As in 1:05:00; days come first."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hours}:{minutes:02d}:{seconds:02d}"


@dataclass
class Status:
    """What the bar says."""

    doing: str
    """Such as "step"."""
    done: int
    total: float
    """Infinity where it is not known."""
    seconds_left: float | None = None
    fraction: float | None = None
    """How much of the whole is done; `done / total` if None."""
    values: Mapping[str, str] = field(default_factory=dict)
    """By their labels, the most important first."""

    def line(self) -> str:
        """All of it in one line, without a bar."""
        return GAP.join([self._head, *self._progress, *self._values])

    def lines(self, width: int) -> list[str]:
        """One line with a bar, or two where that is too short; each at most `width` long."""
        if len(self.line()) + SHORTEST + 1 <= width:
            return [GAP.join([self._with_bar(width - len(self.line())), *self._progress, *self._values])]
        first, values = GAP.join([self._head, *self._progress]), self._values
        if len(first) + SHORTEST + 1 <= width:
            first = GAP.join([self._with_bar(width - len(first)), *self._progress])
        while len(GAP.join(values)) > width:
            values.pop()
        return [line[:width] for line in (first, GAP.join(values)) if line]

    @property
    def _head(self) -> str:
        return f"{self.doing} {self.done:,}" + (f"/{int(self.total):,}" if isfinite(self.total) else "")

    @property
    def _share(self) -> float | None:
        if self.fraction is None:
            return self.done / self.total if isfinite(self.total) and self.total else None
        return min(self.fraction, 1.0)

    @property
    def _progress(self) -> list[str]:
        left = [] if self.seconds_left is None else [f"{clock(self.seconds_left)} left"]
        return left if self._share is None else [f"{self._share:.0%}", *left]

    @property
    def _values(self) -> list[str]:
        return [f"{label} {value}" for label, value in self.values.items()]

    def _with_bar(self, room: int) -> str:
        length = min(room - 1, LONGEST)
        filled = round(length * (self._share or 0.0))
        return f"{self._head} {FULL * filled}{EMPTY * (length - filled)}"


def training_values(latest: Mapping[str, float], branch: str) -> dict[str, str]:
    """Error against goal, ARI-FG, β and loss, by their labels.

    Args:
        latest: the newest value of everything logged.
        branch: the one that is reported.
    """
    values = {}
    error = latest.get(f"geco/{branch}/nll_average")
    goal = latest.get(f"geco/{branch}/goal")
    if error is None:
        error = next(
            (v for name in ("train", f"train/{branch}") if (v := latest.get(f"{name}/nll_per_dim"))), None
        )
    if error is not None:
        values["error"] = number(error) + ("" if goal is None else f" of {number(goal)}")
    if "val/ari_fg" in latest:
        values["ARI-FG"] = number(latest["val/ari_fg"])
    if (beta := latest.get(f"geco/{branch}/beta")) is not None:
        values["β"] = number(beta)
    if "train/loss" in latest:
        values["loss"] = number(latest["train/loss"])
    return values


def validation_line(step: int, metrics: Mapping[str, Any]) -> str:
    """What a validation found, as in "step 5,000: ARI-FG 0.812  by attention 0.903  MSE 0.00312"."""
    found = [
        f"{label} {number(float(metrics[f'val/{name}']))}"
        for name, label in SCORES
        if f"val/{name}" in metrics
    ]
    return f"step {step:,}: {'  '.join(found)}"


# ---------------------------------------------------------------- the bar


class Bar:
    """A line or two at the bottom of a terminal; what else is printed stands above. Elsewhere plain lines.

    The cursor stays as it is, so that a terminal is whole however the process ends.
    """

    def __init__(self) -> None:
        self._live: Live | None = None
        self._handlers: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []
        self._due = self._started = 0.0

    def start(self) -> None:
        """Takes the bottom of the terminal, if there is one."""
        self.stop()
        self._started = perf_counter()
        console = Console(stderr=True, highlight=False)
        if not sys.stderr.isatty() or console.is_dumb_terminal:
            self._due = self._started + FIRST_LINE
            return
        self._due = 0.0
        streams = (sys.stderr, sys.stdout)
        self._live = Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty()
        )
        self._live.start()
        console.show_cursor(True)
        loggers = [logging.root, *logging.root.manager.loggerDict.values()]
        for handler in (h for found in loggers for h in getattr(found, "handlers", ())):
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                self._handlers.append((handler, handler.stream))
                handler.setStream(sys.stderr)

    def is_due(self) -> bool:
        """Whether it is time for another drawing."""
        return perf_counter() >= self._due

    def show(self, status: Status) -> None:
        """Draws."""
        now = perf_counter()
        if self._live is None:
            self._due = now + min(SLOWEST, max(FIRST_LINE, (now - self._started) / 2))
            print(status.line(), file=sys.stderr, flush=True)
            return
        self._due = now + REFRESH
        lines = status.lines(self._live.console.width)
        text = Text("\n").join(Text(line, overflow="crop", no_wrap=True) for line in lines)
        self._live.update(text, refresh=True)

    def stop(self) -> None:
        """Leaves the terminal as it was."""
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers.clear()
        if self._live is not None:
            live, self._live = self._live, None
            with suppress(OSError):  # the terminal may be gone
                live.stop()


class RunBar(ProgressBar):
    """One bar for the whole run: step, time left, and the newest logged values."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = Bar()
        self._enabled = True
        self._total: float = 0.0
        self._samples: deque[tuple[float, int]] = deque()

    def disable(self) -> None:
        """See Lightning's."""
        self._enabled = False
        self._bar.stop()

    def enable(self) -> None:
        """See Lightning's."""
        self._enabled = True

    # ---------------------------------------------------------------- training

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins, also in the middle of a run."""
        if not self._enabled:
            return
        self._total = trainer.estimated_stepping_batches
        self._samples = deque([(perf_counter(), trainer.global_step)])
        self._bar.start()
        self._show_training(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws, if it is time."""
        if self._enabled and self._bar.is_due():
            self._show_training(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends."""
        self._bar.stop()

    def _show_training(self, trainer: pl.Trainer, pl_module: Any) -> None:
        step, now = trainer.global_step, perf_counter()
        self._samples.append((now, step))
        while len(self._samples) > 2 and now - self._samples[1][0] > MEMORY:
            self._samples.popleft()
        latest = next((logger.latest for logger in trainer.loggers if isinstance(logger, RunCSVLogger)), {})
        seconds, fraction = self._left(trainer, step, now)
        branch = pl_module.branches[-1] if getattr(pl_module, "branches", ()) else ""
        values = training_values(latest, branch)
        self._bar.show(Status("step", step, self._total, seconds, fraction, values))

    def _left(self, trainer: pl.Trainer, step: int, now: float) -> tuple[float | None, float | None]:
        """Seconds to the end, by the steps or by the limit of time, and the share of the latter."""
        then, first = self._samples[0]
        left = None
        if step > first and isfinite(self._total):
            left = (self._total - step) * (now - then) / (step - first)
        for timer in trainer.callbacks:
            limit = timer.time_remaining() if isinstance(timer, Timer) else None
            if limit is not None and (left is None or limit < left):
                elapsed = timer.time_elapsed()
                return max(0.0, limit), elapsed / max(elapsed + limit, 1e-9)
        return left, None

    # ---------------------------------------------------------------- evaluation

    def _start_evaluation(self, trainer: pl.Trainer) -> None:
        if self._enabled and trainer.state.fn != "fit":
            self._bar.start()

    def _show_evaluation(self, doing: str, done: int, batches: Any) -> None:
        if self._enabled and self._bar.is_due():
            total = sum(batches) if isinstance(batches, list) else batches
            self._bar.show(Status(doing, done + 1, total))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins, where it is not part of a training."""
        self._start_evaluation(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws, if it is time."""
        inside = trainer.state.fn == "fit"
        doing = f"step {trainer.global_step:,}: validation" if inside else "validation"
        self._show_evaluation(doing, batch_idx, trainer.num_val_batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends, where it is not part of a training."""
        if trainer.state.fn != "fit":
            self._bar.stop()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins."""
        self._start_evaluation(trainer)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws, if it is time."""
        self._show_evaluation("test batch", batch_idx, trainer.num_test_batches)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends."""
        self._bar.stop()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins."""
        self._start_evaluation(trainer)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws, if it is time."""
        self._show_evaluation("batch", batch_idx, trainer.num_predict_batches)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends."""
        self._bar.stop()

    # ---------------------------------------------------------------- the end, whatever it was

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Ends."""
        self._bar.stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ends."""
        self._bar.stop()


class ValidationLine(Callback):
    """Prints what every validation of a training found."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints, on rank zero."""
        if trainer.is_global_zero and trainer.state.fn == "fit" and not trainer.sanity_checking:
            print(validation_line(trainer.global_step, trainer.callback_metrics), flush=True)
