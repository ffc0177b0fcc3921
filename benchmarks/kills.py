"""Kills training runs at random moments, resumes them, and compares them with a run that nobody disturbed.

    python benchmarks/kills.py --kills 100                        # one process, no workers
    python benchmarks/kills.py --kills 100 --workers 2
    python benchmarks/kills.py --kills 20 --ranks 2

Every run is the command in a process of its own, in a process group of its own. With one rank it is forked
from this process, which has imported everything already: most of a short run is imports. `--spawn` starts the
interpreter anew instead. After each kill the same command with `--ckpt_path last` goes on. A run that reaches
its end must equal the undisturbed one in every byte of the weights, the optimiser, the objective, the random
generators and the best checkpoint, and in every digit of its log; then the next run begins, until all kills
are spent.
"""

import argparse
import csv
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: threads do not survive a fork

import torch
import yaml

from lightning_genesis.cli import main as command
from lightning_genesis.storage.checkpoint import read_checkpoint

UNEQUAL_BY_NATURE = "time/"
"""Prefix of logged values that tell how fast it went."""


def experiment(model: dict[str, Any], steps: int, workers: int) -> dict[str, Any]:
    """A small run that saves and validates every few steps, over many epochs."""
    return {
        "model": model,
        "data": {
            "class_path": "data_modules.MultiDSprites",
            "init_args": {
                "image_size": 32,
                "train_size": 60,
                "val_size": 6,
                "test_size": 6,
                "batch_size": 4,
                "num_workers": workers,
            },
        },
        "trainer": {
            "max_steps": steps,
            "val_check_interval": 7,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "checkpoint": {"last_every": 3, "keep_every": 20},
        "pictures": {"num_images": 2, "every": 25},
        "run": {"wandb": False},
    }


GENESIS_V2 = {
    "class_path": "lightning_genesis.models.GenesisV2",
    "init_args": {"feature_dim": 8, "latent_dim": 8},
}


def contents(value: object) -> Iterator[bytes]:
    """Every value in a checkpoint, in order, as bytes."""
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype}{list(value.shape)}".encode()
        yield value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, dict):
        for key in value:
            yield repr(key).encode()
            yield from contents(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from contents(item)
    else:
        yield repr(value).encode()


def fingerprint(run: Path) -> dict[str, Any]:
    """What has to be equal: hashes of the checkpoints' parts, and the log."""
    parts: dict[str, Any] = {}
    for path in sorted((run / "checkpoints").glob("*.ckpt")):
        if path.name == "previous.ckpt":  # the end may follow the last interval or a resume
            continue
        checkpoint = read_checkpoint(path)
        for name in ("state_dict", "optimizer_states", "lr_schedulers", "random_states", "global_step"):
            digest = hashlib.sha256(b"".join(contents(checkpoint.get(name)))).hexdigest()
            parts[f"{path.name} {name}"] = digest
    with open(run / "metrics.csv", newline="") as file:
        rows = [
            {k: v for k, v in row.items() if v and not k.startswith(UNEQUAL_BY_NATURE)}
            for row in csv.DictReader(file)
        ]
    parts["log"] = [row for row in rows if row.keys() - {"step", "epoch"}]
    return parts


@dataclass
class Report:
    """What came of it."""

    kills: int = 0
    finished: int = 0
    differences: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    moments: Counter[str] = field(default_factory=Counter)
    resumed_from: list[int] = field(default_factory=list)
    """Step of `last.ckpt` after each kill; 0 if there was none yet."""


class Fork:
    """A command in a process forked from this one, in a session of its own; used like `subprocess.Popen`.

    Args:
        args: of the command.
        folder: to run in.
        log: file for what it prints.
    """

    def __init__(self, args: list[str], folder: Path, log: Path) -> None:
        log.write_text("")
        self.code: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            output = os.open(log, os.O_WRONLY | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            code = command(args)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, when it has ended.

        Raises:
            TimeoutExpired: if it has not after so many seconds.
        """
        end = time.perf_counter() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.perf_counter() > end:
                raise subprocess.TimeoutExpired("fit", timeout or 0.0)
            time.sleep(0.005)
        return code


class Torture:
    """Runs, kills, resumes, compares.

    Args:
        folder: to work in.
        ranks: processes of a run.
        workers: loader processes of a rank.
        steps: of a run.
        signals: to kill with, chosen at random.
        seed: of the moments.
        model: class and arguments.
        spawn: start the interpreter anew for every run.
    """

    def __init__(
        self,
        folder: Path,
        ranks: int = 1,
        workers: int = 0,
        steps: int = 120,
        signals: tuple[signal.Signals, ...] = (signal.SIGKILL,),
        seed: int = 0,
        model: dict[str, Any] = GENESIS_V2,
        spawn: bool = False,
    ) -> None:
        self.folder, self.ranks, self.signals = folder, ranks, signals
        self.spawn = spawn or ranks > 1
        self.random = random.Random(seed)
        (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment(model, steps, workers)))
        self.log = folder / "output.txt"
        started = time.perf_counter()
        assert self.run("whole", None) == 0, self.log.read_text()[-3000:]
        self.seconds = time.perf_counter() - started
        self.training_seconds = self._trained_for
        self.whole = fingerprint(folder / "runs" / "whole")

    def run(self, name: str, kill_after: float | None) -> int:
        """Starts or resumes a run; kills it so many seconds after training began. The exit code."""
        args = ["fit", "--config", "experiment.yaml", "--run.name", name, "--ckpt_path", "last"]
        if self.ranks > 1:
            args += ["--trainer.devices", str(self.ranks), "--trainer.strategy", "ddp"]
        process = self._spawn(args) if self.spawn else Fork(args, self.folder, self.log)
        begun = self._wait_for_training(process)
        try:
            code = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            self._kill(process.pid)
            code = process.wait()
        self._trained_for = time.perf_counter() - begun
        if self.ranks > 1 or kill_after is not None:  # nothing may survive into the next run
            self._end_group(process.pid)
        return code

    def _spawn(self, args: list[str]) -> subprocess.Popen[bytes]:
        with open(self.log, "w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "lightning_genesis.cli", *args],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_for_training(self, process: "subprocess.Popen[bytes] | Fork") -> float:
        # the first step is near when the run's folder has been announced
        while process.poll() is None and "run folder" not in self.log.read_text():
            time.sleep(0.02)
        return time.perf_counter()

    def _kill(self, pid: int) -> None:
        number = self.random.choice(self.signals)
        if self.ranks > 1 and self.random.random() < 0.5:  # one process of several
            victims = _group(pid)
            os.kill(self.random.choice(victims), number)
            if number == signal.SIGKILL:
                time.sleep(0.2)
                self._end_group(pid)
        else:
            os.killpg(pid, number)

    @staticmethod
    def _end_group(group: int) -> None:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return
        while _group(group):
            time.sleep(0.02)

    def torture(self, kills: int, report: Report) -> Report:
        """Spends so many kills and compares every run that reaches its end."""
        while report.kills < kills:
            name = f"run-{report.finished}"
            while True:
                # a few times as many as training takes would never be killed
                delay = self.random.uniform(0.0, 0.6 * self.training_seconds)
                last = report.kills >= kills
                code = self.run(name, None if last else delay)
                if code == 0:
                    break
                if code not in (-signal.SIGKILL, -signal.SIGTERM, 75):
                    report.failures.append(f"{name}: exit code {code}: {self.log.read_text()[-2000:]}")
                    return report
                report.kills += 1
                report.moments["saved and left" if code == 75 else "killed"] += 1
                last_file = self.folder / "runs" / name / "checkpoints" / "last.ckpt"
                step = read_checkpoint(last_file)["global_step"] if last_file.is_file() else 0
                report.resumed_from.append(step)
            report.finished += 1
            found = fingerprint(self.folder / "runs" / name)
            for part in self.whole.keys() | found.keys():
                if found.get(part) != self.whole.get(part):
                    report.differences.append(f"{name}: {part}")
            print(
                f"{report.kills} kills, {report.finished} runs finished, "
                f"{len(report.differences)} differences {sorted(report.differences)[:8]}",
                flush=True,
            )
        return report


def _group(group: int) -> list[int]:
    """Living processes of a process group."""
    members = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state != "Z":
            members.append(int(path.name))
    return members


def main() -> None:
    """Prints what came of it; exit code 1 if anything differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spawn", action="store_true")
    parser.add_argument("--signal", choices=("kill", "ask", "both"), default="kill")
    options = parser.parse_args()
    kill, ask = (signal.SIGKILL,), (signal.SIGTERM, signal.SIGUSR1)
    signals = {"kill": kill, "ask": ask, "both": kill + ask}[options.signal]
    with tempfile.TemporaryDirectory() as folder:
        torture = Torture(
            Path(folder),
            options.ranks,
            options.workers,
            options.steps,
            signals,
            options.seed,
            spawn=options.spawn,
        )
        print(f"undisturbed: {torture.seconds:.1f} s, of which training {torture.training_seconds:.1f} s")
        started = time.perf_counter()
        report = torture.torture(options.kills, Report())
        print(
            f"{options.kills} kills asked, {report.kills} done {dict(report.moments)}, {report.finished} "
            f"runs finished, {len(report.differences)} differences, {len(report.failures)} failures, "
            f"{time.perf_counter() - started:.0f} s"
        )
        print(f"steps resumed from: {report.resumed_from}")
        for line in report.differences + report.failures:
            print(line)
    sys.exit(bool(report.differences or report.failures))


if __name__ == "__main__":
    main()
