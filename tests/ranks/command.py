"""The command on one process or several, and how far two runs are apart."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

ROOT = Path(__file__).parents[2]
PROBE = "tests.ranks.probe.Probe"
TIMEOUT = 600  # seconds, for a machine with other things to do


def experiment(model: str, options: Mapping[str, Any], **data: int) -> dict[str, Any]:
    """A tiny run of a model that logs every step, all of whose processes have a `Probe`."""
    sizes = {"image_size": 32, "train_size": 64, "val_size": 5, "test_size": 5, "batch_size": 4}
    return {
        "model": {"class_path": f"lightning_genesis.models.{model}", "init_args": dict(options)},
        "data": {"class_path": "data_modules.MultiDSprites", "init_args": {**sizes, **data}},
        "trainer": {
            "max_steps": 50,
            "val_check_interval": 50,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "callbacks": [{"class_path": PROBE}],
        },
        "checkpoint": {"last_every": 1000, "keep_every": None},
        "pictures": {"num_images": 0},
        "run": {"wandb": False},
    }


def start(
    folder: Path, command: str, name: str, config: Mapping[str, Any], *args: str, ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, which starts the others."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(dict(config)))
    words = [sys.executable, "-m", "lightning_genesis.cli", command, "--config", f"{name}.yaml"]
    words += ["--run.name", name, *args]
    if ranks > 1:
        words += ["--trainer.devices", str(ranks), "--trainer.strategy", "ddp"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        words, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # ranks that wait for each other end no other way
        process.communicate()
        raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def run(
    folder: Path, command: str, name: str, config: Mapping[str, Any], *args: str, ranks: int = 1
) -> list[dict[str, Any]]:
    """The same, which has to succeed; what every rank's `Probe` wrote down."""
    done = start(folder, command, name, config, *args, ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    return records(folder / "runs" / name, command, ranks)


def records(run_folder: Path, command: str, ranks: int) -> list[dict[str, Any]]:
    """What every rank's `Probe` wrote down."""
    return [torch.load(run_folder / f"probe-{command}-{rank}.pt") for rank in range(ranks)]


def rows(path: Path, prefixes: tuple[str, ...]) -> list[dict[str, float]]:
    """The numbers of a CSV file under names that start so, and their step; rows without any are left out."""
    with open(path, newline="") as file:
        found = [
            {name: float(text) for name, text in row.items() if text and name.startswith((*prefixes, "step"))}
            for row in csv.DictReader(file)
        ]
    return [row for row in found if len(row) > 1]


def apart(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Difference of each number, relative where it is larger than 1."""
    assert first.keys() == second.keys()
    return {name: abs(first[name] - second[name]) / max(1.0, abs(first[name])) for name in first}


def largest_difference(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], relative: bool = False
) -> tuple[float, str]:
    """Largest difference of an element and the name of its tensor.

    Args:
        first: tensors by name.
        second: as many of the same shapes.
        relative: to the largest element of the tensor in `first`.
    """
    assert first.keys() == second.keys()
    differences = []
    for name, tensor in first.items():
        difference = float((tensor - second[name]).abs().max()) if tensor.numel() else 0.0
        scale = float(tensor.abs().max()) if relative and tensor.numel() else 1.0
        differences.append((difference / scale if difference else 0.0, name))
    return max(differences, default=(0.0, ""))
