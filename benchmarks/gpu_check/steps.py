"""(c) Steps of every model in a real Trainer: losses against the CPU's, waits of the host, kernels.

The first three steps draw their noise from the images' own streams, which are the same on every device. Then
it is torch's own generator, as in training, and two steps are looked at by the profiler.
"""

from collections import Counter
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.all_models import MODELS, Batches, trainer_on
from benchmarks.counting import count_operations
from benchmarks.gpu_check.part import Outcome, Report
from benchmarks.train_step import quiet
from lightning_genesis.scene import IndexedNoise

PRECISIONS = {"32-true": 1e-2, "bf16-mixed": 5e-2, "16-mixed": 5e-2}
"""By how much a loss may differ from the CPU's in float32, relative; "32-true" has TF32 in convolutions."""
COMPARED, WARM, LOOKED_AT = 3, 2, 2
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls of the runtime in which the host waits; a kernel or a copy that is only queued is none."""


class Look(pl.Callback):
    """Keeps the losses of the steps that are compared and looks at those after them.

    Args:
        index: of the images.
        device: that trains.
    """

    def __init__(self, index: torch.Tensor, device: torch.device) -> None:
        self.index, self.device = index, device
        self.losses: list[torch.Tensor] = []
        self.kernels = 0
        self.waits: Counter[str] = Counter()
        self._looking: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draws by index while losses are compared."""
        draw = pl_module.forward

        def forward(images: torch.Tensor, noise: Any = None) -> Any:
            step = trainer.global_step
            return draw(images, IndexedNoise(step, self.index) if step < COMPARED else noise)

        pl_module.forward = forward

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begins to look."""
        if trainer.global_step != COMPARED + WARM:
            return
        if self.device.type == "cuda":
            kinds = torch.profiler.ProfilerActivity
            self._looking = torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA])
            self._looking.__enter__()
        else:
            self._looking = count_operations()
            self._counts = self._looking.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps a loss, which is read when all is over."""
        if trainer.global_step <= COMPARED:
            self.losses.append(outputs["loss"].detach())
        if trainer.global_step != COMPARED + WARM + LOOKED_AT:
            return
        self._looking.__exit__(None, None, None)
        if self.device.type == "cuda":
            events = self._looking.events()
            on_device = [e.name for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
            self.kernels = len([name for name in on_device if not name.startswith(("Memcpy", "Memset"))])
            self.waits.update(event.name for event in events if event.name in WAITS)
        else:
            self.kernels, self.waits = self._counts.kernels.total(), self._counts.syncs


def look(name: str, size: tuple[int, int, int], device: torch.device, precision: str) -> Look:
    """Takes the steps of a model of `size` (slots, side, batch)."""
    slots, side, batch = size
    torch.manual_seed(0)
    model = MODELS[name](slots, side)
    batches = Batches((batch, 3, side, side), 100)
    steps = COMPARED + WARM + LOOKED_AT
    found = Look(batches.batch["index"], device)
    if device.type == "cpu" and precision == "reference":
        precision, steps = "32-true", COMPARED
    trainer_on(device, max_steps=steps, callbacks=[found], precision=precision).fit(model, batches.loader())
    return found


def left_out(report: Report, precision: str, first: bool) -> str:
    """Why a precision is not tried, if it is not."""
    if report.tiny and precision == "16-mixed":
        return "Lightning has no float16 on a CPU"
    # many processors have no instructions for it, and take a hundred times as long
    return (
        "bfloat16 on a CPU, one model is enough"
        if report.tiny and precision != "32-true" and not first
        else ""
    )


def main(report: Report) -> None:
    quiet()
    device = torch.device(report.device)
    size = (3, 32, 2) if report.tiny else (7, 64, 4)
    names = [*(report.models or MODELS)]
    for name in names:
        reference: list[torch.Tensor] = []

        def compare(precision: str, name: str = name, reference: list[torch.Tensor] = reference) -> Outcome:
            if not reference:
                reference += look(name, size, torch.device("cpu"), "reference").losses
            found = look(name, size, device, precision)
            expected = torch.stack(reference)
            off = ((torch.stack(found.losses).cpu() - expected).abs() / expected.abs()).max().item()
            # the gate reads its report once per step, where a whole forward is queued: an event, no stream
            waits = {kind: count / LOOKED_AT for kind, count in found.waits.items()}
            well = off <= PRECISIONS[precision] and set(waits) <= {"cudaEventSynchronize"}
            well = well and all(count <= 1 for count in waits.values())
            values = {"kernels": found.kernels / LOOKED_AT, "off": off, "waits": waits or "none"}
            return Outcome(values, well)

        for precision in PRECISIONS:
            label = f"{name}, {precision}"
            if reason := left_out(report, precision, first=name == names[0]):
                report.item(label, lambda reason=reason: Outcome(ok=None, note=f"left out: {reason}"))
            else:
                report.item(label, lambda precision=precision: compare(precision), needs=3.0)
