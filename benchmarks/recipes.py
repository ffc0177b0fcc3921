"""Works through a list of training runs, one at a time, each with a budget of CPU seconds.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/recipes.py runs/queue/jobs.txt

A line of the list is a job, `RUN SECONDS EXPERIMENT [options of fit]`, for example

    slots1 300 quickstart_slot_attention --model.learning_rate 1e-3
    slots1@b 600 quickstart_slot_attention --model.learning_rate 1e-3

Empty lines and those that start with # are left out. The second job goes on where the first has stopped, as
`RUN@PART` is the run RUN. The list is read again before each job, so it can be changed meanwhile; what has a
line in `results.jsonl` beside it is finished. The budget is of the training with its validations, in this
process: on a shared machine it stays what it is, however many others are at work. Scores are those of the
validation split, by the last weights; nothing here looks at a test image.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import pytorch_lightning as pl
import torch

from lightning_genesis.commands.fit import ExperimentCLI

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SCORES = ("ari_fg", "ari_fg_attention", "ari", "ari_attention", "msc_fg", "msc_fg_attention", "mse", "elbo")


class Job(NamedTuple):
    """A line of the list."""

    name: str
    seconds: float
    experiment: str
    options: tuple[str, ...]

    @property
    def run(self) -> str:
        """Name of the run, which several jobs may train in turn."""
        return self.name.partition("@")[0]


def read_jobs(path: Path) -> list[Job]:
    """The jobs of a list, in order.

    Raises:
        SystemExit: if a line is no job.
    """
    jobs = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        try:
            name, seconds, experiment, *options = words
            jobs.append(Job(name, float(seconds), experiment, tuple(options)))
        except ValueError:
            raise SystemExit(
                f"{path}:{number}: {line!r}, expected RUN SECONDS EXPERIMENT [options]"
            ) from None
    return jobs


class Budget(pl.Callback):
    """Stops the training after so many CPU seconds of this process."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started, self.first_step = seconds, 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock, after data were made and a checkpoint was read."""
        self.started, self.first_step = time.process_time(), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Looks at the clock."""
        if time.process_time() - self.started > self.seconds:
            trainer.should_stop = True


class BudgetCLI(ExperimentCLI):
    """The training command with a budget."""

    budget: Budget

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Adds the budget."""
        trainer = super().instantiate_trainer(**kwargs)
        cast(Any, trainer).callbacks.append(self.budget)
        return trainer


def train(job: Job) -> dict[str, Any]:
    """Trains a job in this process and returns its line of results."""
    torch.set_num_threads(1)
    common = [
        *("--config", str(EXPERIMENTS / f"{job.experiment}.yaml"), "--run.name", job.run),
        *("--run.wandb", "false", "--trainer.enable_progress_bar", "false"),
        *("--trainer.enable_model_summary", "false", "--trainer.max_time", "null", *job.options),
    ]
    BudgetCLI.budget = budget = Budget(job.seconds)
    fit = BudgetCLI(["fit", *common, "--ckpt_path", "last"])
    used = time.process_time() - budget.started
    start = common.index("--init_from") if "--init_from" in common else len(common)  # of `fit` alone
    common = common[:start] + common[start + 2 :]
    validation = ExperimentCLI(["validate", *common, "--ckpt_path", "last"])
    values = {
        k.removeprefix("val/"): round(float(v), 4) for k, v in validation.trainer.callback_metrics.items()
    }
    return {
        "job": job.name,
        "first_step": budget.first_step,
        "steps": fit.trainer.global_step,
        "cpu_seconds": round(used),
        "experiment": job.experiment,
        "options": " ".join(job.options),
        **{name: values[name] for name in SCORES if name in values},
    }


def main() -> None:
    """Trains what is not finished, each job in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("jobs", type=Path, help="the list")
    parser.add_argument("--job", help="only this one, in this process")
    options = parser.parse_args()
    results = options.jobs.with_name("results.jsonl")
    failed: set[str] = set()
    while True:
        jobs = {job.name: job for job in read_jobs(options.jobs)}
        if options.job is not None:
            with results.open("a") as file:
                file.write(json.dumps(train(jobs[options.job])) + "\n")
            return
        lines = results.read_text().splitlines() if results.is_file() else []
        finished = {json.loads(line)["job"] for line in lines}
        waiting = [name for name in jobs if name not in finished | failed]
        if not waiting:
            return
        log = options.jobs.with_name(f"{waiting[0]}.log")
        with log.open("w") as file:
            command = [sys.executable, __file__, str(options.jobs), "--job", waiting[0]]
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if code:
            failed.add(waiting[0])
            print(f"{waiting[0]}: exit code {code}, see {log}", file=sys.stderr)


if __name__ == "__main__":
    main()
