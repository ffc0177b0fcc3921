"""`lightning-genesis sweep --config FILE --seeds 0,1,2 [OPTIONS OF fit]`: an experiment over several seeds.

Trains each seed and tests its last checkpoint, in processes of their own, then writes the report. The same
command goes on where it was stopped: what is finished is not done again. A seed that fails does not keep the
others from running. The exit code is 0 if all is done, 1 if a seed failed, 75 if a signal stopped it or
one of its runs.
"""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import IO, Any

import yaml

from lightning_genesis.commands.arguments import CommandParser
from lightning_genesis.errors import ConfigurationError, Incomplete, Stopped
from lightning_genesis.storage.files import replacing
from lightning_genesis.storage.json_file import read_json

COMMAND = (sys.executable, "-m", "lightning_genesis.cli")
STAGES = ("fit", "test")
STATE, LOCK, OUTPUT = "sweep.json", "sweep.lock", "output.txt"
"""In a run's folder: what is finished, held while a process is at it, what processes side by side print."""
STOPPED = Stopped.exit_code
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
POLL = 0.2
"""Seconds between looks at the processes."""
TEST_ONLY = ("protocol", "importance_samples", "fid", "structure")
"""Options, or sections of them, that `test` alone heeds."""
FIT_ONLY = ("init_from", "checkpoint", "rollback")
"""Options, or sections of them, that `fit` alone heeds."""
OURS = ("--seed_everything", "--ckpt_path")
"""Options of `fit` that the sweep sets."""


@dataclass
class Seed:
    """A run of the sweep."""

    number: int
    folder: Path
    stage: str = STAGES[0]
    process: subprocess.Popen[bytes] | None = None
    lock: IO[str] | None = None
    gpu: str | None = None
    outcome: str | None = None
    """None while it is not over; `done`, `stopped`, or why it failed."""


@dataclass
class Sweep:
    """Processes for every seed, a few at a time.

    Args:
        name: of the runs, before `-seedN`.
        root: folder of the runs.
        seeds: of the runs.
        options: of `fit`.
        test_options: of `test` alone.
        digest: of the configuration; a run that was finished with another one is taken up again.
        gpus: identifiers, one seed at a time on each; one seed at a time altogether if empty.
    """

    name: str
    root: Path
    seeds: Sequence[int]
    options: Sequence[str]
    digest: str
    gpus: Sequence[str] = ()
    test_options: Sequence[str] = ()
    runs: list[Seed] = field(init=False)
    signals: list[str] = field(init=False, default_factory=list)
    """Names of those that were received."""

    def __post_init__(self) -> None:
        self.runs = [Seed(seed, self.root / f"{self.name}-seed{seed}") for seed in self.seeds]

    def run(self) -> None:
        """Runs all seeds, or until a signal comes; then the processes save and leave first."""
        waiting = list(self.runs)
        free: list[str | None] = [*self.gpus] or [None]
        running: list[Seed] = []
        with self._stopping_on_signals():
            while waiting or running:
                while waiting and free and not self.signals:
                    seed = waiting.pop(0)
                    seed.gpu = free.pop(0)
                    if self._open(seed):
                        running.append(seed)
                    else:
                        free.append(seed.gpu)
                for seed in [seed for seed in running if self._is_over(seed)]:
                    running.remove(seed)
                    free.append(seed.gpu)
                if self.signals:
                    for seed in waiting:
                        seed.outcome = "stopped"
                    waiting.clear()
                if running:
                    time.sleep(POLL)

    # ---------------------------------------------------------------- processes

    def _open(self, seed: Seed) -> bool:
        """Starts the first stage that is not finished; False if there is none, or another sweep is at it."""
        finished = self._finished(seed)
        if len(finished) == len(STAGES):
            seed.outcome = "done"
            print(f"seed {seed.number}: finished before")
            return False
        try:
            seed.folder.mkdir(parents=True, exist_ok=True)
            # Its processes hold the lock too: they may outlive a sweep that is killed.
            seed.lock = open(seed.folder / LOCK, "w")  # noqa: SIM115  (closed when the run is over)
        except OSError as error:
            seed.outcome = f"{seed.folder}: {error.strerror}, expected a folder of a run, or none"
            return False
        try:
            fcntl.flock(seed.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            seed.lock.close()
            seed.outcome = f"{seed.folder} is in use by another sweep's process"
            return False
        seed.stage = STAGES[len(finished)]
        self._start(seed)
        return True

    def _start(self, seed: Seed) -> None:
        environment = {"WANDB_RUN_GROUP": self.name} | os.environ
        where = ""
        if seed.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = seed.gpu
            where += f" on GPU {seed.gpu}"
        output: IO[bytes] | None = None
        if len(self.gpus) > 1:
            output = open(seed.folder / OUTPUT, "ab")  # noqa: SIM115  (closed below)
            where += f", output in {seed.folder / OUTPUT}"
        print(f"seed {seed.number}: {seed.stage}{where}", flush=True)
        assert seed.lock is not None
        seed.process = subprocess.Popen(
            [*COMMAND, *self._arguments(seed)],
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=[seed.lock.fileno()],
            start_new_session=True,  # Ctrl-C comes to us alone
        )
        if output is not None:
            output.close()

    def _arguments(self, seed: Seed) -> list[str]:
        if seed.stage == "fit":
            own = ["--seed_everything", str(seed.number), "--run.name", seed.folder.name]
            return ["fit", *self.options, *own, "--ckpt_path", "last"]
        config = ["--config", str(seed.folder / "config.yaml")]
        return ["test", *config, *self.test_options, "--ckpt_path", "last"]

    def _is_over(self, seed: Seed) -> bool:
        """Notes what a process did and starts the next stage, if there is one."""
        assert seed.process is not None
        assert seed.lock is not None
        code = seed.process.poll()
        if code is None:
            return False
        if code == 0:
            finished = [*self._finished(seed), seed.stage]
            self._write_state(seed, finished)
            if len(finished) < len(STAGES) and not self.signals:
                seed.stage = STAGES[len(finished)]
                self._start(seed)
                return False
            seed.outcome = "done" if len(finished) == len(STAGES) else "stopped"
        elif code == STOPPED or self.signals:
            seed.outcome = "stopped"
        else:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"
            seed.outcome = f"{seed.stage} {how}"
        seed.lock.close()
        print(f"seed {seed.number}: {seed.outcome}", flush=True)
        return True

    # ---------------------------------------------------------------- what is finished

    def _finished(self, seed: Seed) -> list[str]:
        """Stages that were finished with this configuration and seed: a folder may be a copy of another's."""
        try:
            state = read_json(seed.folder / STATE)
            of_this = state["config_sha256"] == self.digest and state["seed"] == seed.number
            if of_this and state["finished"] == list(STAGES[: len(state["finished"])]):
                return list(state["finished"])
        except (OSError, ValueError, TypeError, KeyError):
            pass  # nothing is known, so nothing is finished: `fit` goes on from its checkpoint
        return []

    def _write_state(self, seed: Seed, finished: Sequence[str]) -> None:
        with replacing(seed.folder / STATE) as temporary:
            state = {"config_sha256": self.digest, "seed": seed.number, "finished": list(finished)}
            temporary.write_text(json.dumps(state) + "\n")

    # ---------------------------------------------------------------- signals

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """The first signal asks the processes to save and leave, a second one kills them."""

        def stop(number: int, frame: FrameType | None) -> None:
            for seed in self.runs:
                if seed.process is None or seed.process.poll() is not None:
                    continue
                if self.signals:
                    with suppress(ProcessLookupError):  # it may just have left
                        os.killpg(seed.process.pid, signal.SIGKILL)
                else:  # a test has nothing to save, and SIGTERM does not end it
                    seed.process.send_signal(signal.SIGTERM if seed.stage == "fit" else signal.SIGINT)
            self.signals.append(signal.Signals(number).name)

        before = {number: signal.signal(number, stop) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


# ---------------------------------------------------------------- command


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ConfigurationError: if an option is wrong; nothing was run then.
        Incomplete: if a seed failed, or the report lacks something; the others are done.
        Stopped: if a signal stopped it or a run; what was at work is saved.
    """
    parser = CommandParser(prog="lightning-genesis sweep", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, required=True, help="such as 0,1,2")
    parser.add_argument(
        "--gpus",
        type=_names,
        default=[],
        help="such as 0,1: one seed at a time on each; else one after another",
    )
    parser.add_argument("--output", type=Path, help="of the report; ROOT/NAME-report by default")
    own, options = parser.parse_known_args(list(args))
    sweep = _make(own.seeds, own.gpus, options)
    sweep.run()
    _finish(sweep, own.output or sweep.root / f"{sweep.name}-report")


def _finish(sweep: Sweep, output: Path) -> None:
    """Says what came of every seed, and writes the report of those that are done unless a signal came."""
    from lightning_genesis.commands.report import report

    failed = [seed for seed in sweep.runs if seed.outcome not in ("done", "stopped")]
    stopped = [seed for seed in sweep.runs if seed.outcome == "stopped"]
    done = len(sweep.runs) - len(failed) - len(stopped)
    failures = "; ".join(f"seed {seed.number}: {seed.outcome}" for seed in failed)
    if sweep.signals:
        raise Stopped(
            f"sweep: {sweep.signals[0]}: {done} of {len(sweep.runs)} seeds done"
            f"{f', {failures}' if failed else ''}; the same command goes on"
        )
    incomplete: Incomplete | None = None
    if done:
        try:
            report([seed.folder for seed in sweep.runs if seed.outcome == "done"], output)
        except Incomplete as error:
            incomplete = error
    if failed:
        raise Incomplete(
            f"sweep: {done} of {len(sweep.runs)} seeds done; {failures}; the same command tries again"
        )
    if stopped:
        raise Stopped(
            f"sweep: a signal to a run: {done} of {len(sweep.runs)} seeds done; the same command goes on"
        )
    if incomplete:
        raise incomplete


def _make(seeds: Sequence[int], gpus: Sequence[str], options: Sequence[str]) -> Sweep:
    """Reads the configuration once, so that what is wrong with it is said once, and before anything runs."""
    for option in OURS:
        if any(argument == option or argument.startswith(f"{option}=") for argument in options):
            raise ConfigurationError(f"sweep: {option} is set by the sweep itself; leave it out")
    options, test_options = _apart(options, TEST_ONLY)
    config = _print_config("fit", options)
    tested = _print_config("test", [*_apart(options, FIT_ONLY)[0], *test_options]) if test_options else {}
    if config["trainer"]["fast_dev_run"]:
        raise ConfigurationError(
            "sweep: a fast_dev_run leaves nothing to test; leave trainer.fast_dev_run out"
        )
    name = config["run"]["name"]
    if name is None:
        file = _first_config(options)
        name = Path(file).stem if file else config["model"]["class_path"].rpartition(".")[2]
    digested = [config, tested] if test_options else config
    digest = hashlib.sha256(json.dumps(digested, sort_keys=True, default=str).encode()).hexdigest()
    return Sweep(name, Path(config["run"]["root"]), seeds, options, digest, gpus, test_options)


def _apart(options: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options, with their values, of other names or sections, and of these."""
    parts: tuple[list[str], list[str]] = ([], [])
    place = 0
    for option in options:
        if option.startswith("--") or option == "-c":
            place = int(option.lstrip("-").partition("=")[0].partition(".")[0] in names)
        parts[place].append(option)
    return parts


def _print_config(stage: str, options: Sequence[str]) -> dict[str, Any]:
    command = [*COMMAND, stage, *options, "--print_config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("lightning-genesis: ")]
        last = (lines or done.stderr.splitlines() or ["no reason given"])[-1]
        raise ConfigurationError(last.removeprefix("lightning-genesis: ").removeprefix("error: "))
    config = yaml.safe_load(done.stdout)
    if not isinstance(config, dict):
        raise ConfigurationError(
            f"sweep: no configuration from `{' '.join([stage, *options])} --print_config`"
        )
    return config


def _first_config(options: Sequence[str]) -> str | None:
    for option, following in pairwise([*options, ""]):
        if option in ("--config", "-c"):
            return following
        if option.startswith("--config="):
            return option.split("=", 1)[1]
    return None


def _names(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ArgumentTypeError(f"{text!r}, expected different names with commas between them, such as 0,1")
    return names


def _seeds(text: str) -> list[int]:
    names = [part.strip() for part in text.split(",")]
    if not all(name.isdecimal() for name in names) or len({int(name) for name in names}) < len(names):
        raise ArgumentTypeError(
            f"{text!r}, expected different numbers with commas between them, such as 0,1,2"
        )
    return [int(name) for name in names]
