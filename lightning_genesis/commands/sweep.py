"""`lightning-genesis sweep --config FILE --seeds 0,1,2 [OPTIONS OF fit]`: an experiment, seeds by values.

An option of `fit` with several values, `--model.std 0.5,0.7`, is swept: every value, or combination of values
of several options, is trained with every seed. A comma inside brackets or quotes belongs to the value.
`--values` takes them from a YAML file.

Trains each run and tests its last checkpoint, in processes of their own, then writes the report. The same
command goes on where it was stopped: what is finished is not done again. A run that fails does not keep the
others from running. The exit code is 0 if all is done, 1 if a run failed, 75 if a signal stopped it or
one of its runs.
"""

import hashlib
import json
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lightning_genesis.commands.arguments import CommandParser
from lightning_genesis.commands.slurm_array import write_array
from lightning_genesis.commands.sweep_processes import Run, Sweep
from lightning_genesis.commands.swept_values import SweptOptions, refuse_several
from lightning_genesis.errors import ConfigurationError, Incomplete, Stopped

READER = (sys.executable, "-m", "lightning_genesis.commands.read_configurations")
TEST_ONLY = ("protocol", "importance_samples", "fid", "structure")
"""Options, or sections of them, that `test` alone heeds."""
FIT_ONLY = ("init_from", "checkpoint", "rollback")
"""Options, or sections of them, that `fit` alone heeds."""
OURS = ("--seed_everything", "--ckpt_path")
"""Options of `fit` that the sweep sets."""


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        ConfigurationError: if an option is wrong; nothing was run then.
        Incomplete: if a run failed, or the report lacks something; the others are done.
        Stopped: if a signal stopped it or a run; what was at work is saved.
    """
    parser = CommandParser(prog="lightning-genesis sweep", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, required=True, help="such as 0,1,2")
    parser.add_argument("--values", type=Path, metavar="FILE", help="YAML: options and the values they take")
    parser.add_argument(
        "--gpus",
        type=_names,
        default=[],
        help="such as 0,1: one run at a time on each; else one after another",
    )
    parser.add_argument("--jobs", type=_count, metavar="N", help="N runs at a time, without choosing GPUs")
    parser.add_argument("--output", type=Path, help="of the report; ROOT/NAME-report by default")
    parser.add_argument(
        "--slurm", type=Path, metavar="FILE", help="run nothing; write a script for sbatch, a task per run"
    )
    parser.add_argument("--task", type=int, metavar="I", help="only run I of all, from 0, and no report")
    own, options = parser.parse_known_args(list(args))
    if own.gpus and own.jobs:
        raise ConfigurationError("sweep: --gpus gives one run to each GPU: leave --jobs out")
    if own.slurm and (own.gpus or own.task is not None or own.output):
        raise ConfigurationError(
            "sweep: --slurm gives every run a task of its own: leave --gpus, --task, --output out"
        )
    if own.slurm and own.slurm.exists():
        raise ConfigurationError(f"sweep: --slurm {own.slurm}: is there; delete it, or give another name")
    sweep = _make(own.seeds, own.values, options)
    sweep.gpus, sweep.jobs = own.gpus, own.jobs or 1
    if own.slurm:
        write_array(own.slurm, sweep.name, len(sweep.runs), args, own.jobs)
        return
    if own.task is not None:
        if not 0 <= own.task < len(sweep.runs):
            raise ConfigurationError(f"sweep: --task {own.task}, expected 0 to {len(sweep.runs) - 1}")
        sweep.runs = [sweep.runs[own.task]]
    sweep.run()
    _finish(sweep, None if own.task is not None else own.output or sweep.root / f"{sweep.name}-report")


def _finish(sweep: Sweep, output: Path | None) -> None:
    """Says what came of every run, and writes the report of those that are done unless a signal came."""
    from lightning_genesis.commands.report import report

    failed = [run for run in sweep.runs if run.outcome not in ("done", "stopped")]
    stopped = [run for run in sweep.runs if run.outcome == "stopped"]
    done = len(sweep.runs) - len(failed) - len(stopped)
    what = "runs" if any(run.point.values for run in sweep.runs) else "seeds"
    failures = "; ".join(f"{run.label}: {run.outcome}" for run in failed)
    count = f"{done} of {len(sweep.runs)} {what} done"
    if sweep.signals:
        raise Stopped(
            f"sweep: {sweep.signals[0]}: {count}{f', {failures}' if failed else ''}; the same command goes on"
        )
    incomplete: Incomplete | None = None
    if done and output is not None:
        try:
            report([run.folder for run in sweep.runs if run.outcome == "done"], output)
        except Incomplete as error:
            incomplete = error
    if failed:
        raise Incomplete(f"sweep: {count}; {failures}; the same command tries again")
    if stopped:
        raise Stopped(f"sweep: a signal to a run: {count}; the same command goes on")
    if incomplete:
        raise incomplete


def _make(seeds: Sequence[int], values: Path | None, options: Sequence[str]) -> Sweep:
    """Reads all configurations first, so that what is wrong is said once, and before anything runs."""
    for option in OURS:
        if any(argument == option or argument.startswith(f"{option}=") for argument in options):
            raise ConfigurationError(f"sweep: {option} is set by the sweep itself; leave it out")
    options, test_options = _apart(options, TEST_ONLY)
    refuse_several(test_options)
    swept = SweptOptions(options, values)
    lines = [swept.at(point) for point in swept.points]
    for option, _ in swept.points[0].values:
        if option.partition(".")[0] in TEST_ONLY:
            raise ConfigurationError(f"sweep: {option}: is of `test`, expected an option of `fit`")
    tests = [[*_apart(line, FIT_ONLY)[0], *test_options] for line in lines] if test_options else []
    configs = _read_configs([*(["fit", *line] for line in lines), *(["test", *line] for line in tests)])
    config, tested = configs[0], configs[len(lines) :]
    if config["trainer"]["fast_dev_run"]:
        raise ConfigurationError(
            "sweep: a fast_dev_run leaves nothing to test; leave trainer.fast_dev_run out"
        )
    name = config["run"]["name"]
    if name is None:
        file = _first_config(options)
        name = Path(file).stem if file else config["model"]["class_path"].rpartition(".")[2]
    root = Path(config["run"]["root"])
    runs = [
        Run(
            seed,
            root / "-".join(filter(None, (name, point.name, f"seed{seed}"))),
            line,
            _digest([configs[place], tested[place]] if tested else configs[place]),
            point,
        )
        for seed in seeds  # all values of a seed first: the whole chart is there early
        for place, (point, line) in enumerate(zip(swept.points, lines, strict=True))
    ]
    return Sweep(name, root, runs, test_options)


def _digest(config: Any) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def _apart(options: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options, with their values, of other names or sections, and of these."""
    parts: tuple[list[str], list[str]] = ([], [])
    place = 0
    for option in options:
        if option.startswith("--") or option == "-c":
            place = int(option.lstrip("-").partition("=")[0].partition(".")[0] in names)
        parts[place].append(option)
    return parts


def _read_configs(lines: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The configurations of command lines, in one process: each new one would import torch again."""
    asked = json.dumps(lines)
    done = subprocess.run(READER, input=asked, capture_output=True, text=True, check=False)
    try:
        answers = json.loads(done.stdout)
    except ValueError:
        reason = (done.stderr.splitlines() or ["no reason given"])[-1]
        raise ConfigurationError(f"sweep: the configurations cannot be read: {reason}") from None
    if "error" in answers[-1]:
        told = answers[-1]["error"].removeprefix("lightning-genesis: ").removeprefix("error: ")
        raise ConfigurationError(told)
    return [yaml.safe_load(answer["config"]) for answer in answers]


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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r}, expected a number of runs, 1 or more")
    return int(text)
