"""The processes of a sweep: a run for every seed and combination of values, a few at a time."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from lightning_genesis.commands.swept_values import Point
from lightning_genesis.errors import Stopped
from lightning_genesis.runs.sweep_state import SweepState, read_state, write_state

COMMAND = (sys.executable, "-m", "lightning_genesis.cli")
STAGES = ("fit", "test")
LOCK, OUTPUT = "sweep.lock", "output.txt"
"""In a run's folder: held while a process is at it, what processes side by side print."""
STOPPED = Stopped.exit_code
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
POLL = 0.2
"""Seconds between looks at the processes."""


@dataclass
class Run:
    """A run of the sweep."""

    seed: int
    folder: Path
    options: Sequence[str]
    """Of `fit`."""
    digest: str
    """Of the configuration; a run that was finished with another one is taken up again."""
    point: Point = field(default_factory=Point)
    stage: str = STAGES[0]
    process: subprocess.Popen[bytes] | None = None
    lock: IO[str] | None = None
    gpu: str | None = None
    outcome: str | None = None
    """None while it is not over; `done`, `stopped`, or why it failed."""

    @property
    def label(self) -> str:
        """What lines call it by."""
        return f"{self.point.name}{', ' if self.point.values else ''}seed {self.seed}"


@dataclass
class Sweep:
    """Processes for every run, a few at a time.

    Args:
        name: of the sweep, and its group in W&B.
        root: folder of the runs.
        runs: what is to be done.
        test_options: of `test` alone.
        gpus: identifiers, one run at a time on each; none if empty.
        jobs: runs at a time where no GPUs are named.
    """

    name: str
    root: Path
    runs: list[Run]
    test_options: Sequence[str] = ()
    gpus: Sequence[str] = ()
    jobs: int = 1
    signals: list[str] = field(init=False, default_factory=list)
    """Names of those that were received."""

    def run(self) -> None:
        """Does all runs, or until a signal comes; then the processes save and leave first."""
        waiting = list(self.runs)
        free: list[str | None] = [*self.gpus] or [None] * self.jobs
        running: list[Run] = []
        with self._stopping_on_signals():
            while waiting or running:
                while waiting and free and not self.signals:
                    run = waiting.pop(0)
                    run.gpu = free.pop(0)
                    if self._open(run):
                        running.append(run)
                    else:
                        free.append(run.gpu)
                for run in [run for run in running if self._is_over(run)]:
                    running.remove(run)
                    free.append(run.gpu)
                if self.signals:
                    for run in waiting:
                        run.outcome = "stopped"
                    waiting.clear()
                if running:
                    time.sleep(POLL)

    # ---------------------------------------------------------------- processes

    def _open(self, run: Run) -> bool:
        """Starts the first stage that is not finished; False if there is none, or another sweep is at it."""
        finished = self._finished(run)
        if len(finished) == len(STAGES):
            run.outcome = "done"
            print(f"{run.label}: finished before")
            return False
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            # Its processes hold the lock too: they may outlive a sweep that is killed.
            run.lock = open(run.folder / LOCK, "w", encoding="utf-8")  # noqa: SIM115  (closed when the run is over)
        except OSError as error:
            run.outcome = f"{run.folder}: {error.strerror}, expected a folder of a run, or none"
            return False
        try:
            fcntl.flock(run.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            run.lock.close()
            run.outcome = f"{run.folder} is in use by another sweep's process"
            return False
        run.stage = STAGES[len(finished)]
        self._start(run)
        return True

    def _start(self, run: Run) -> None:
        environment = {"WANDB_RUN_GROUP": self.name} | os.environ
        where = f" ({self.runs.index(run) + 1} of {len(self.runs)})" if len(self.runs) > 1 else ""
        if run.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = run.gpu
            where += f" on GPU {run.gpu}"
        output: IO[bytes] | None = None
        if max(len(self.gpus), self.jobs) > 1:
            output = open(run.folder / OUTPUT, "ab")  # noqa: SIM115  (closed below)
            where += f", output in {run.folder / OUTPUT}"
        print(f"{run.label}: {run.stage}{where}", flush=True)
        assert run.lock is not None
        run.process = subprocess.Popen(
            [*COMMAND, *self._arguments(run)],
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=[run.lock.fileno()],
            start_new_session=True,  # Ctrl-C comes to us alone
        )
        if output is not None:
            output.close()

    def _arguments(self, run: Run) -> list[str]:
        if run.stage == "fit":
            own = ["--seed_everything", str(run.seed), "--run.name", run.folder.name]
            return ["fit", *run.options, *own, "--ckpt_path", "last"]
        config = ["--config", str(run.folder / "config.yaml")]
        return ["test", *config, *self.test_options, "--ckpt_path", "last"]

    def _is_over(self, run: Run) -> bool:
        """Notes what a process did and starts the next stage, if there is one."""
        assert run.process is not None
        assert run.lock is not None
        code = run.process.poll()
        if code is None:
            return False
        if code == 0:
            finished = [*self._finished(run), run.stage]
            self._write_state(run, finished)
            if len(finished) < len(STAGES) and not self.signals:
                run.stage = STAGES[len(finished)]
                self._start(run)
                return False
            run.outcome = "done" if len(finished) == len(STAGES) else "stopped"
        elif code == STOPPED or self.signals:
            run.outcome = "stopped"
        else:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"
            run.outcome = f"{run.stage} {how}"
        run.lock.close()
        print(f"{run.label}: {run.outcome}", flush=True)
        return True

    # ---------------------------------------------------------------- what is finished

    def _finished(self, run: Run) -> list[str]:
        """Stages that were finished with this configuration and seed."""
        state = read_state(run.folder)
        if state is None or (state.config_sha256, state.seed) != (run.digest, run.seed):
            return []  # nothing is known, so nothing is finished: `fit` goes on from its checkpoint
        finished = list(state.finished)
        return finished if finished == list(STAGES[: len(finished)]) else []

    def _write_state(self, run: Run, finished: Sequence[str]) -> None:
        values = dict(run.point.values)
        write_state(run.folder, SweepState(run.digest, finished, self.name, run.seed, values))

    # ---------------------------------------------------------------- signals

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """The first signal asks the processes to save and leave, a second one kills them."""

        def stop(number: int, frame: FrameType | None) -> None:
            for run in self.runs:
                if run.process is None or run.process.poll() is not None:
                    continue
                if self.signals:
                    with suppress(ProcessLookupError):  # it may just have left
                        os.killpg(run.process.pid, signal.SIGKILL)
                else:  # a test has nothing to save, and SIGTERM does not end it
                    run.process.send_signal(signal.SIGTERM if run.stage == "fit" else signal.SIGINT)
            self.signals.append(signal.Signals(number).name)

        before = {number: signal.signal(number, stop) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
