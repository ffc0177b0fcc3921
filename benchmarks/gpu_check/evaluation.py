"""(d) Evaluation, samples and FID's network against the CPU's; a run that is killed and resumed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.all_models import MODELS, Batches, trainer_on
from benchmarks.gpu_check.harness import ROOT
from benchmarks.gpu_check.part import Outcome, Report
from benchmarks.train_step import quiet
from lightning_genesis.metrics.fid import FrechetInceptionDistance
from lightning_genesis.models import SceneModel
from lightning_genesis.scene import IndexedNoise

LOOKED_AT = ("GENESIS-V2", "SRI-MoG", "EMORL", "GENESIS", "SlotAttention", "MONet-G")
OFF = 1e-2
"""By how much a score may differ, relative to it or to 1. Both sides are computed without TF32."""


def main(report: Report) -> None:
    quiet()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report.item("killed and resumed", lambda: killed_and_resumed(report), needs=10.0)
    for name in [name for name in LOOKED_AT if not report.models or name in report.models]:
        report.item(f"{name}, test", lambda name=name: scores(report, name), needs=3.0)
        report.item(f"{name}, samples", lambda name=name: samples(report, name), needs=2.0)
    report.item("FID with random weights", lambda: fid(report), needs=5.0)


def both(report: Report, name: str) -> list[tuple[torch.device, SceneModel]]:
    """The same weights on the CPU and on the device."""
    slots, side = (3, 32) if report.tiny else (7, 64)
    found = []
    for device in (torch.device("cpu"), torch.device(report.device)):
        torch.manual_seed(0)
        found.append((device, MODELS[name](slots, side)))
    return found


def scores(report: Report, name: str) -> Outcome:
    """All that `test` logs."""
    results: list[dict[str, float]] = []
    for device, model in both(report, name):
        batches = Batches((2 if report.tiny else 8, 3, model.image_size, model.image_size), 2)
        logged: Any = trainer_on(device).test(model, batches.loader(), verbose=False)
        results.append(logged[0])
    reference, found = results
    off = {key: abs(found[key] - value) / max(1.0, abs(value)) for key, value in reference.items()}
    worst = max(off, key=off.__getitem__)
    well = set(found) == set(reference) and off[worst] <= OFF
    return Outcome({"scores": len(off), "off": off[worst]}, well, "" if well else f"worst is {worst}")


@torch.no_grad()
def samples(report: Report, name: str) -> Outcome:
    """Scenes from the prior, by their number."""
    found = []
    for device, model in both(report, name):
        if type(model).sample is SceneModel.sample:
            return Outcome(ok=None, note="has no prior over scenes")
        model = model.to(device).eval()
        found.append(model.sample(2, noise=IndexedNoise(0, range(2))).reconstruction.cpu())
    off = (found[0] - found[1]).abs().max().item()
    return Outcome({"off": off}, off <= OFF)


@torch.no_grad()
def fid(report: Report) -> Outcome:
    """Features and distance by the network with weights of a seed; the real ones are not at hand."""
    from lightning_genesis.evaluation.inception import InceptionFeatures

    images = torch.rand(2, 2 if report.tiny else 16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features, distances = [], []
    for device in ("cpu", report.device):
        torch.manual_seed(0)
        network = InceptionFeatures().to(device)
        network.network.fc = torch.nn.Identity()
        made = [network(part.to(device)) for part in images]
        metric = FrechetInceptionDistance().to(device)
        for part, real in zip(made, (True, False), strict=True):
            metric.update(part, real)
        features.append(torch.stack(made).cpu())
        distances.append(float(metric.compute()))
    scale = features[0].abs().max().item()
    off = (features[0] - features[1]).abs().max().item() / scale
    apart = abs(distances[0] - distances[1]) / max(abs(distances[0]), 1e-6 * scale**2)
    return Outcome({"features off": off, "distance off": apart}, off <= OFF and apart <= OFF)


def fit(folder: Path, report: Report, *options: str) -> list[str]:
    """The command line of a small run in `folder`."""
    data = {
        "image_size": 32,
        "num_slots": 4,
        "train_size": 64,
        "val_size": 8,
        "test_size": 8,
        "batch_size": 8,
    }
    model = {"feature_dim": 16, "latent_dim": 16}
    trainer = {
        "max_steps": 30,
        "accelerator": report.device,
        "devices": 1,
        "log_every_n_steps": 5,
        "val_check_interval": 15,
        "enable_progress_bar": "false",
        "enable_model_summary": "false",
    }
    command = [sys.executable, "-m", "lightning_genesis.cli", "fit"]
    command += ["--model", "lightning_genesis.models.GenesisV2", "--data", "data_modules.MultiDSprites"]
    for section, values in (("model", model), ("data", data), ("trainer", trainer)):
        command += [f"--{section}.{name}={value}" for name, value in values.items()]
    command += ["--run.name=check", f"--run.root={folder / 'runs'}", "--run.wandb=false"]
    return [*command, f"--data.root={folder / 'data'}", "--checkpoint.last_every=5", *options]


def killed_and_resumed(report: Report) -> Outcome:
    """SIGKILL after the first checkpoint; the same command with `--ckpt_path last` goes on to the end."""
    from lightning_genesis.storage.checkpoint import read_checkpoint

    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        last = folder / "runs" / "check" / "checkpoints" / "last.ckpt"
        process = subprocess.Popen(fit(folder, report), cwd=ROOT)
        try:
            while process.poll() is None and not last.is_file() and report.left > 2:
                time.sleep(0.02)
            killed = process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
        if not last.is_file():
            return Outcome(ok=False, note=f"no checkpoint was written; code {process.returncode}")
        at = read_checkpoint(last)["global_step"]
        command = fit(folder, report, "--ckpt_path=last")
        code = subprocess.run(command, cwd=ROOT, timeout=max(1.0, report.left - 1), check=False).returncode
        step = read_checkpoint(last)["global_step"]
    return Outcome({"killed": killed, "at step": at, "end": step}, code == 0 and step == 30)
