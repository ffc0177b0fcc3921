"""(g) `compile: reduce-overhead`, CUDA graphs, with a validation between the steps."""

from typing import Any

import torch
from torch import nn

from benchmarks.all_models import MODELS, Batches, trainer_on
from benchmarks.gpu_check.part import Outcome, Report
from benchmarks.train_step import Clock, quiet

LOOKED_AT = ("GENESIS-V2", "GENESIS")
SMALL = ("BD-VAE",)
"""On a CPU, which has no CUDA graphs: only that all is called as it should be, by a backend that is quick."""


def main(report: Report) -> None:
    quiet()
    chosen = [name for name in LOOKED_AT if not report.models or name in report.models]
    if report.tiny:
        compile_module = nn.Module.compile
        nn.Module.compile = lambda module, mode: compile_module(module, backend="eager")  # type: ignore
    for name in SMALL if report.tiny else chosen:
        report.item(name, lambda name=name: train(report, name), needs=15.0)


def train(report: Report, name: str) -> Outcome:
    """Trains eagerly and by graphs on the same noise; a graph that overwrote its outputs would not learn."""
    slots, side, batch = (3, 32, 2) if report.tiny else (7, 64, 32)
    device, steps = torch.device(report.device), 4 if report.tiny else 60
    losses, seconds = [], []
    for mode in (None, "reduce-overhead"):
        torch.manual_seed(0)
        model = MODELS[name](slots, side, compile=mode)
        clock = Clock(device, steps // 2, steps // 4, float("inf"))
        options = {"precision": "32-true" if report.tiny else "bf16-mixed", "val_check_interval": 2}
        trainer = trainer_on(device, max_steps=steps, callbacks=[clock], **options)
        batches = Batches((batch, 3, side, side), steps)
        trainer.fit(model, batches.loader(), Batches((batch, 3, side, side), 1).loader())
        tested: Any = trainer.test(model, Batches((batch, 3, side, side), 1).loader(), verbose=False)
        losses.append(float(tested[0]["test/mse"]))
        seconds.append(min(clock.seconds))
    off = abs(losses[0] - losses[1]) / losses[0]
    note = "backend eager: a CPU has no CUDA graphs" if report.tiny else ""
    return Outcome({"ms eager": seconds[0] * 1e3, "ms": seconds[1] * 1e3, "mse off": off}, off < 0.1, note)
