"""Leaving in good order when a scheduler or a user asks for it."""

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import WandbLogger

from lightning_genesis.callbacks.checkpoints import last_good
from lightning_genesis.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
"""Sent by schedulers before they kill, by SLURM ahead of the time limit, by a closing terminal, by Ctrl-C."""
_early: list[str] = []
"""Names of signals that came before training; the code that met one may not have passed it on."""
Handler = Callable[[int, FrameType | None], None]


def _handle(numbers: tuple[signal.Signals, ...], handler: Handler) -> None:
    owner = os.getpid()

    def in_this_process(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:  # a loader's process is forked with it, and gets the signal too
            if number == signal.SIGHUP:
                _leave_the_terminal()
            handler(number, frame)

    if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
        for number in numbers:
            # `nohup` has a run outlive its terminal
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, in_this_process)


def _leave_the_terminal() -> None:
    """A terminal that is closed cannot be written to: every line printed from now on would be an error."""
    silent = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(silent, descriptor)
    os.close(silent)


@contextmanager
def leaving_on_signal() -> Iterator[None]:
    """While nothing is trained, before and after the steps, leaves at once with the same exit code."""

    def leave(number: int, frame: FrameType | None) -> None:
        _early.append(signal.Signals(number).name)
        raise Stopped(_outside(_early[0]))

    _early.clear()
    before = [signal.getsignal(number) for number in SIGNALS]
    _handle(SIGNALS, leave)
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            if threading.current_thread() is threading.main_thread():
                signal.signal(number, handler)


def _outside(name: str) -> str:
    return (
        f"{name}: stopped outside the training steps, nothing was unsaved; the same command with "
        "--ckpt_path last goes on"
    )


class StopOnSignal(Checkpoint):
    """On one of `SIGNALS`, finishes the step, saves `last.ckpt` and leaves with exit code 75.

    A validation in progress is finished first. One signal to any of the ranks is enough: the request is
    reduced together with the flags of `FiniteGate`, so that all ranks stop after the same step. A second
    Ctrl-C stops at once and saves nothing.

    Lightning's own handling is replaced: it saves in the middle of a step, kills the other ranks, and asks
    every rank before every step, which makes the host wait for the device.

    It is a `Checkpoint` because Lightning calls those last and in their order: this one after what saves.

    Raises:
        Stopped: when the run is saved.
    """

    def __init__(self) -> None:
        self._received: str | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over from Lightning, whose handlers have just been set and which restores the old ones."""
        module: Any = pl_module
        module.stop_requested = module.stop_agreed = False

        def request(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and module.stop_requested:
                raise KeyboardInterrupt
            self._received = signal.Signals(number).name
            module.stop_requested = True

        _handle(SIGNALS, request)
        if _early:
            raise Stopped(_outside(_early[0]))
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leaves, if all ranks have agreed to and the last step is complete."""
        if not pl_module.stop_agreed:
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                with suppress(Exception):  # its process may be gone
                    logger.experiment.mark_preempting()
        raise Stopped(
            f"{self._received or 'a signal to another rank'}: stopped after step {trainer.global_step}, "
            f"saved in {last_good(trainer)}; the same command with --ckpt_path last goes on from there"
        )
