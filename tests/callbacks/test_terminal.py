"""What a run shows while it goes on, on a terminal and elsewhere."""

import io
import logging
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch.utils.data import DataLoader

from lightning_genesis.callbacks import terminal
from lightning_genesis.callbacks.terminal import (
    Bar,
    RunBar,
    Status,
    ValidationLine,
    clock,
    number,
    training_values,
    validation_line,
)
from lightning_genesis.runs.loggers import RunCSVLogger
from tests.callbacks.faulty import Faulty, Images

VALUES = {"error": "0.582 of 0.566", "ARI-FG": "0.812", "β": "1.20", "loss": "4,312"}
WHOLE = Status("step", 12345, 100_000, seconds_left=5025.0, values=VALUES)


class Screen(io.StringIO):
    """A terminal of one line and a scroll: what was printed stays, what was erased does not.

    It knows what rich writes: carriage return, erase line, cursor up, and the cursor that is shown or hidden.
    """

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> list[str]:
        rows: list[str] = [""]
        row = column = 0
        for code, text in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", self.getvalue()):
            if code == "\n":
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            elif code == "\r":
                column = 0
            elif code == "\x1b[2K":
                rows[row] = ""
            elif code == "\x1b[1A":
                row -= 1
            elif text:
                rows[row] = rows[row].ljust(column)[:column] + text + rows[row][column + len(text) :]
                column += len(text)
            else:
                assert code.endswith("m") or code in ("\x1b[?25l", "\x1b[?25h"), code
        return [line.rstrip() for line in rows if line.strip()]


@pytest.fixture
def open_screen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Screen]:
    """Makes stdout and stderr one terminal; in a test, since pytest takes them itself when one begins."""

    def opened(columns: int = 80) -> Screen:
        found = Screen()
        monkeypatch.setattr(sys, "stderr", found)
        monkeypatch.setattr(sys, "stdout", found)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(columns))
        return found

    return opened


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5821, "0.582"),
        (0.00312, "0.00312"),
        (1.2, "1.20"),
        (-912.34, "-912"),
        (43123.4, "43,123"),
        (0.0, "0.00"),
        (1e-10, "1.00e-10"),
        (999.9, "1,000"),
        (math.nan, "nan"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_times() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3661, 90061, -1)] == [
        *("0:00:00", "0:01:00", "1:01:01", "1 d 1:01:01", "0:00:00")
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 200])
def test_lines_fit(width: int) -> None:
    lines = WHOLE.lines(width)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= 2
    assert lines[0].startswith("step 12,345/100,000")
    if width >= 40:
        assert "12%  1:23:45 left" in lines[0]
        assert "error 0.582 of 0.566" in " ".join(lines)
    if width >= 60:
        assert all(f"{label} {value}" in " ".join(lines) for label, value in VALUES.items())
    if width >= 80:
        bar = re.search(r"━+─+", lines[0])
        assert bar
        assert bar[0].count("━") == round(0.12345 * len(bar[0]))


def test_what_is_not_known_is_left_out() -> None:
    assert Status("step", 3, math.inf).lines(80) == ["step 3 " + "─" * 30]
    assert Status("step", 0, 10).line() == "step 0/10  0%"
    assert Status("batch", 1, 0).line() == "batch 1/0"
    assert WHOLE.line() == (
        "step 12,345/100,000  12%  1:23:45 left  error 0.582 of 0.566  ARI-FG 0.812  β 1.20  loss 4,312"
    )


def test_values_are_those_of_the_branch() -> None:
    latest = {"geco/a/nll_average": 1.0, "geco/a/goal": 0.5, "geco/b/nll_average": 2.0, "geco/b/goal": 0.7}
    latest |= {"geco/b/beta": 3.0, "train/loss": 12.0, "val/ari_fg": 0.25}
    assert training_values(latest, "b") == {
        "error": "2.00 of 0.700",
        "ARI-FG": "0.250",
        "β": "3.00",
        "loss": "12.0",
    }
    assert training_values({"train/nll_per_dim": 0.5}, "b") == {"error": "0.500"}
    assert training_values({"train/b/nll_per_dim": 0.4}, "b") == {"error": "0.400"}
    assert training_values({}, "b") == {}


def test_the_line_of_a_validation() -> None:
    metrics = {"val/ari_fg": torch.tensor(0.8123), "val/mse": torch.tensor(0.0031), "train/loss": 1.0}
    assert validation_line(5000, metrics) == "step 5,000: ARI-FG 0.812  MSE 0.00310"


# ---------------------------------------------------------------- on a terminal


def test_what_is_printed_stands_above_the_bar(open_screen: Callable[..., Screen]) -> None:
    screen = open_screen()
    handler = logging.StreamHandler(screen)
    logger = logging.Logger("test")
    logging.root.manager.loggerDict["test of the terminal"] = logger
    logger.addHandler(handler)
    try:
        bar = Bar()
        bar.start()
        bar.show(WHOLE)
        print("a line of a validation")
        logger.warning("a line of a log")
        bar.show(Status("step", 12346, 100_000))
        print("another", file=sys.stderr)
        assert screen.shown[:3] == ["a line of a validation", "a line of a log", "another"]
        assert screen.shown[3].startswith("step 12,346/100,000 ━")
        assert len(screen.shown) == 4
        bar.stop()
        assert handler.stream is screen
    finally:
        del logging.root.manager.loggerDict["test of the terminal"]
    assert sys.stderr is screen
    assert sys.stdout is screen
    assert screen.shown == ["a line of a validation", "a line of a log", "another"]


def test_the_cursor_is_never_hidden_for_long(open_screen: Callable[..., Screen]) -> None:
    """So that a terminal is whole when the process is killed."""
    screen = open_screen()
    bar = Bar()
    bar.start()
    bar.show(WHOLE)
    assert screen.getvalue().rfind("\x1b[?25h") > screen.getvalue().rfind("\x1b[?25l")
    bar.stop()


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal(open_screen: Callable[..., Screen], columns: int) -> None:
    screen = open_screen(columns)
    bar = Bar()
    bar.start()
    bar.show(WHOLE)
    assert max(len(line) for line in screen.shown) <= columns
    bar.stop()
    assert screen.shown == []


def fit(steps: int, *callbacks: pl.Callback, loggers: Any = False) -> None:
    model = Faulty()
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=loggers,
        callbacks=[*callbacks],
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        log_every_n_steps=2,
    )
    loader = DataLoader(Images(), batch_size=2)
    trainer.fit(model, loader, loader)


def test_one_bar_for_the_whole_run(
    open_screen: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(terminal, "REFRESH", 0.0)
    screen = open_screen()
    drawn: list[Status] = []
    show = Bar.show
    monkeypatch.setattr(Bar, "show", lambda self, status: (drawn.append(status), show(self, status)))
    fit(8, RunBar(), ValidationLine(), loggers=RunCSVLogger(tmp_path, "metrics.csv"))
    steps = [status for status in drawn if status.doing == "step"]
    assert [status.done for status in steps] == [*range(9)]
    assert {status.total for status in steps} == {8}
    assert all(status.seconds_left is not None for status in steps[1:])
    assert steps[-1].seconds_left == 0.0
    assert "loss" in steps[-1].values
    assert any(status.doing == "step 3: validation" for status in drawn)
    assert [line.split(":")[0] for line in screen.shown if line.startswith("step")] == ["step 3", "step 6"]


def test_time_left_of_a_resumed_run_is_by_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, clock_now = RunBar(), [100.0]
    monkeypatch.setattr(terminal, "perf_counter", lambda: clock_now[0])
    shown: list[Status] = []
    monkeypatch.setattr(bar._bar, "show", shown.append)
    trainer: Any = type("Trainer", (), {"estimated_stepping_batches": 1000, "loggers": [], "callbacks": []})()
    trainer.global_step = 600
    bar.on_train_start(trainer, None)  # type: ignore[arg-type]
    trainer.global_step, clock_now[0] = 610, 105.0
    bar._show_training(trainer, None)
    assert shown[0].seconds_left is None
    assert shown[1].seconds_left == pytest.approx(195.0)
    timer = Timer(duration="00:00:01:00")
    monkeypatch.setattr(timer, "time_remaining", lambda *_: 45.0)
    monkeypatch.setattr(timer, "time_elapsed", lambda *_: 15.0)
    trainer.callbacks = [timer]
    bar._show_training(trainer, None)
    assert (shown[2].seconds_left, shown[2].fraction) == (45.0, 0.25)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_or_ctrl_c_leaves_the_terminal_whole(
    open_screen: Callable[..., Screen], error: type[BaseException]
) -> None:
    screen = open_screen()

    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                raise error("stops here")

    with pytest.raises((RuntimeError, SystemExit)):
        fit(8, RunBar(), Stops())
    assert sys.stderr is screen
    assert not [line for line in screen.shown if "━" in line or "─" in line]


# ---------------------------------------------------------------- elsewhere


def test_plain_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "FIRST_LINE", 0.0)
    monkeypatch.setattr(terminal, "SLOWEST", 0.0)
    fit(4, RunBar(), ValidationLine())
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "\r" not in captured.out + captured.err
    assert captured.out.splitlines()[0].startswith("step 3: MSE ")
    assert "step 4/4  100%  0:00:00 left" in captured.err


def test_lines_come_more_and_more_seldom(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal, "perf_counter", lambda: now[0])
    bar, times = Bar(), []
    bar.start()
    while now[0] < 7200.0:
        now[0] += 1.0
        if bar.is_due():
            bar.show(WHOLE)
            times.append(now[0])
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    assert gaps[0] == terminal.FIRST_LINE
    assert gaps == sorted(gaps)
    assert gaps[-1] == terminal.SLOWEST
    assert len(capsys.readouterr().err.splitlines()) == len(times) < 25
