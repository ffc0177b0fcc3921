"""(h) GENESIS-V2 on Multi-dSprites by the command that users type, with the time that is left."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_check.harness import ROOT
from benchmarks.gpu_check.part import Outcome, Report

LEAVING = 8.0
"""Seconds for the last validation, the checkpoint and the way out."""


def main(report: Report) -> None:
    report.item("genesisv2_multidsprites", lambda: train(report), needs=20.0)


def train(report: Report) -> Outcome:
    """Trains, and keeps the checkpoint, the log and the newest scores."""
    folder = report.out / ".training"
    sizes = (64, 8, 8) if report.tiny else (20_000, 320, 320)
    sizes_by_split = zip(("train", "val", "test"), sizes, strict=True)
    data = [f"{split}_size={size}" for split, size in sizes_by_split] + [f"root={folder / 'data'}"]
    data += ["image_size=32"] if report.tiny else []
    python = [sys.executable, "-m", "lightning_genesis.cli"]
    # the store first: what its rendering takes is not time of training
    prepare = [*python, "prepare", "multi_dsprites", *(f"--{option}" for option in data)]
    subprocess.run(prepare, cwd=ROOT, check=True, timeout=report.left)
    seconds = int(report.left - LEAVING)
    if seconds < 5:
        return Outcome(ok=None, note=f"left out: {report.left:.0f} s were left")
    options = {
        "trainer.accelerator": report.device,
        "trainer.precision": "bf16-mixed",
        "trainer.max_time": f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}",
        "trainer.val_check_interval": 1000,
        "trainer.enable_progress_bar": "false",
        "data.on_device": "true",
        "pictures.num_images": 0,
        "run.wandb": "false",
        "run.root": folder / "runs",
        "run.name": "check",
    }
    if report.tiny:
        options |= {"trainer.max_steps": 10, "trainer.val_check_interval": 5, "trainer.log_every_n_steps": 5}
        options |= {"trainer.precision": "32-true", "data.num_slots": 3, "data.batch_size": 2}
    command = [*python, "fit", "--config", "experiments/genesisv2_multidsprites.yaml"]
    command += [f"--data.{option}" for option in data]
    command += [f"--{name}={value}" for name, value in options.items()]
    try:
        code = subprocess.run(command, cwd=ROOT, timeout=report.left - 1, check=False).returncode
        return kept(folder / "runs" / "check", report.out, code)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kept(run: Path, out: Path, code: int) -> Outcome:
    """Moves what is worth keeping and reads the log's end."""
    newest: dict[str, str] = {}
    for name in ("metrics.csv", "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        if (run / name).is_file() and not (
            name.endswith("last.ckpt") and (out / "training-best.ckpt").is_file()
        ):
            shutil.copyfile(run / name, out / f"training-{Path(name).name}")
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            newest |= {name: value for name, value in row.items() if value}
    shown = ("step", "train/nll_per_dim", "train/kl", "val/ari_fg", "val/mse", "time/images_per_second")
    values = {name: float(newest[name]) for name in shown if name in newest}
    return Outcome(values, code == 0 and "val/mse" in values, "" if code == 0 else f"code {code}")
