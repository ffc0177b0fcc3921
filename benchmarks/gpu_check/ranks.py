"""(e) Distributed data parallel on one device: by NCCL on a GPU, by gloo on a CPU."""

import torch
import torch.distributed as dist

from benchmarks.all_models import MODELS, Batches, trainer_on
from benchmarks.gpu_check.part import Outcome, Report
from benchmarks.train_step import quiet

STEPS = 3
LOOKED_AT = ("GENESIS-V2", "GENESIS", "EMORL")


def main(report: Report) -> None:
    quiet()
    for name in [name for name in LOOKED_AT if not report.models or name in report.models]:
        report.item(name, lambda name=name: compare(report, name), needs=3.0)


def compare(report: Report, name: str) -> Outcome:
    """Weights after a few steps with and without; the all-reduce of one rank changes nothing."""
    slots, side, batch = (3, 32, 2) if report.tiny else (7, 64, 8)
    weights, backend = [], ""
    for strategy in ("auto", "ddp"):
        torch.manual_seed(0)
        model = MODELS[name](slots, side)
        device = torch.device(report.device)
        trainer = trainer_on(device, max_steps=STEPS, strategy=strategy)
        torch.manual_seed(1)
        trainer.fit(model, Batches((batch, 3, side, side), STEPS).loader())
        weights.append(torch.cat([p.detach().reshape(-1).cpu() for p in model.parameters()]))
        if dist.is_initialized():
            backend = dist.get_backend()
            dist.destroy_process_group()
    expected = "gloo" if report.tiny else "nccl"
    off = (weights[0] - weights[1]).abs().max().item()
    # Adam moves a weight by 1e-4 a step, whichever way rounding sends it
    return Outcome({"backend": backend, "off": off}, backend == expected and off <= 3e-4)
