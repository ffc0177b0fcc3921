"""A training step of every model as users take it: gate, GECO and the optimiser in Lightning's Trainer.

Prints seconds per step (the median), images per second, peak memory, counted floating-point operations,
dispatched kernels and host synchronisations, and the share of the convolution speed that this machine reaches
in the same precision. On a GPU float32 is torch's own default, TF32 in convolutions; "exact" is without. Run
as `python -m benchmarks.train_step [--device cuda] [--models GENESIS-V2 ...]`; on a CPU it takes at most
`--budget` seconds, and says which rows that left out.
"""

import argparse
import contextlib
import gc
import logging
import resource
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.all_models import MODELS, Batches, trainer_on
from benchmarks.counting import Counts, count_operations
from lightning_genesis.models import SceneModel

OVER_BUDGET = "over the budget; give more seconds with --budget, or 0 for no limit"
BLOCKS = 5
"""Times that are taken; the median counts."""


@dataclass(frozen=True)
class Variant:
    """One way to take the step."""

    name: str
    bfloat16: bool = False
    compile: str | None = None
    exact: bool = False

    def kind(self, device: torch.device) -> str:
        """What the convolutions compute in."""
        single = "TF32" if device.type == "cuda" and not self.exact else "float32"
        return "bfloat16" if self.bfloat16 else single


@dataclass
class Row:
    """What was measured of a variant."""

    seconds: float
    memory: int
    counts: Counts | None


def variants(device: torch.device) -> list[Variant]:
    """Those that make sense on a device; the first is what the others are compared with."""
    found = [Variant("float32"), Variant("bfloat16", bfloat16=True)]
    if device.type == "cuda":
        found.append(Variant("float32, exact", exact=True))
    for mode in ["default", "reduce-overhead"] if device.type == "cuda" else ["default"]:
        found.append(Variant(f"compile {mode}", compile=mode))
        found.append(Variant(f"compile {mode}, bfloat16", bfloat16=True, compile=mode))
    return found


@contextlib.contextmanager
def exactness(variant: Variant) -> Iterator[None]:
    """TF32 in convolutions as torch has it, or nowhere."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if variant.exact:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def precision(variant: Variant, device: torch.device) -> Iterator[None]:
    """Autocast and TF32 as the variant has them, outside of a Trainer."""
    with exactness(variant), torch.autocast(device.type, torch.bfloat16, enabled=variant.bfloat16):
        yield


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError when the block takes longer; 0 is no limit."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(OVER_BUDGET)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def finish(device: torch.device) -> float:
    """The time when all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, to the end of its work on the device."""
    start = time.perf_counter()
    function()
    return finish(device) - start


def start_memory(device: torch.device) -> None:
    """Forgets the peak so far, where the system can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: allocated on a GPU, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def convolution_peak(variant: Variant, device: torch.device, channels: int = 0) -> float:
    """Best floating-point operations per second of a dense 3x3 convolution, forward and backward."""
    batch, size = (32, 64) if device.type == "cuda" else (16, 64)
    channels = channels or (512 if device.type == "cuda" else 128)
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device)
    x = torch.randn(batch, channels, size, size, device=device, requires_grad=True)
    flops = 3 * 2 * batch * channels**2 * 9 * size**2  # output, gradients of input and of weight

    def run() -> None:
        conv(x).backward(torch.ones((), device=device).expand(batch, channels, size, size))

    best = float("inf")
    for memory_format in (torch.contiguous_format, torch.channels_last):
        conv, x = conv.to(memory_format=memory_format), x.detach().to(memory_format=memory_format)
        x.requires_grad_()
        with precision(variant, device):
            best = min(best, *(timed(run, device) for _ in range(20 if device.type == "cuda" else 3)))
    return flops / best


def make_step(
    variant: Variant, device: torch.device, num_slots: int, images: Tensor, name: str = "GENESIS-V2"
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The step without a Trainer, and the part whose operations are counted: all but the optimiser.

    Args:
        variant: how.
        device: where.
        num_slots: K.
        images: float `[B, 3, H, W]` on the device.
        name: of the model.
    """
    model = make_model(name, num_slots, images.shape[-1], variant).to(device).train()
    at_step_0(model)
    model.configure_model()
    found: Any = model.configure_optimizers()
    optimizer = found["optimizer"] if isinstance(found, dict) else found

    def forward_and_backward() -> None:
        optimizer.zero_grad()
        with precision(variant, device):
            terms = model.loss_terms(model(images), images)
            loss = model.objective(terms, num_dimensions=images[0].numel())
        loss.backward()
        model.objective.update()

    def step() -> None:
        forward_and_backward()
        optimizer.step()

    return step, forward_and_backward


def make_model(name: str, num_slots: int, size: int, variant: Variant) -> SceneModel:
    """The model of a name with the weights of seed 0."""
    torch.manual_seed(0)
    return MODELS[name](num_slots, size, compile=variant.compile)


def at_step_0(model: Any) -> None:
    """The step that a Trainer would count, for the model and the one that it may contain."""
    for owner in filter(None, (model, getattr(model, "segregation", None))):
        kind = type(owner)
        owner.__class__ = type(kind.__name__, (kind,), {"global_step": property(lambda self: 0)})


def count(variant: Variant, device: torch.device, num_slots: int, images: Tensor, name: str) -> Counts | None:
    """Counts of a step; its kernels do not depend on the batch, its operations are proportional to it."""
    if variant.compile is not None:
        return None  # a compiled graph is not dispatched operation by operation
    small = images[:2].to(device).float() / 255
    _, forward_and_backward = make_step(variant, device, num_slots, small, name)
    with count_operations() as counts:
        forward_and_backward()
    counts.flops = counts.flops * len(images) // len(small)
    return counts


@dataclass
class Clock(pl.Callback):
    """Takes the time of blocks of steps of a Trainer, each to the end of its work on the device.

    Args:
        device: that trains.
        warm: steps before the first block.
        block: steps of a block.
        patience: no further block after so many seconds of them.
    """

    device: torch.device
    warm: int
    block: int
    patience: float
    seconds: list[float] = field(default_factory=list)
    """Of a step, in every block."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begins the first block."""
        if trainer.global_step == self.warm:
            start_memory(self.device)
            self._began = finish(self.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends a block and begins the next one."""
        done = trainer.global_step - self.warm
        if done > 0 and done % self.block == 0:
            now = finish(self.device)
            self.seconds.append((now - self._began) / self.block)
            trainer.should_stop = sum(self.seconds) * self.block > self.patience
            self._began = time.perf_counter()


def measure(
    variant: Variant,
    device: torch.device,
    num_slots: int,
    images: Tensor,
    steps: int,
    patience: float,
    name: str = "GENESIS-V2",
) -> Row:
    """Times the steps in a Trainer, at least one, and none after `patience` seconds of them.

    Args:
        variant: how.
        device: where.
        num_slots: K.
        images: uint8 `[B, 3, H, W]` on the CPU.
        steps: timed at most.
        patience: seconds.
        name: of the model.
    """
    torch._dynamo.reset()
    counts = count(variant, device, num_slots, images, name)
    warm, block = (5, -(-steps // BLOCKS)) if device.type == "cuda" else (1, 1)
    clock = Clock(device, warm, block, patience)
    model = make_model(name, num_slots, images.shape[-1], variant)
    total = warm + -(-steps // block) * block
    trainer = trainer_on(
        device,
        max_steps=total,
        callbacks=[clock],
        precision="bf16-mixed" if variant.bfloat16 else "32-true",
    )
    with exactness(variant):
        trainer.fit(model, Batches(images, total + 1).loader())
    return Row(statistics.median(clock.seconds), peak_memory(device), counts)


def quiet() -> None:
    """Lightning's advice and torch's warnings are not what is measured."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--models", nargs="+", default=["GENESIS-V2"], help=", ".join(MODELS))
    parser.add_argument("--variants", nargs="+", help="float32, bfloat16, ..., 'compile default'; all")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-slots", type=int, default=7)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument(
        "--steps", type=int, help="timed steps of each; 50 on a GPU, 5 or 10 s of them on a CPU"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget", type=float, help="seconds at most, 0 for no limit; 220 on a CPU")
    arguments = parser.parse_args(given)
    if unknown := [name for name in arguments.models if name not in MODELS]:
        parser.error(f"--models: no {', '.join(unknown)}; known are {', '.join(MODELS)}")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if arguments.device == "auto" else arguments.device)
    on_gpu = device.type == "cuda"
    known = [variant.name for variant in variants(device)]
    if unknown := [name for name in arguments.variants or [] if name not in known]:
        parser.error(f"--variants: no {', '.join(unknown)}; known are {', '.join(map(repr, known))}")
    chosen = [variant for variant in variants(device) if variant.name in (arguments.variants or known)]
    steps = arguments.steps or (50 if on_gpu else 5)
    patience = 10.0 if arguments.steps is None and not on_gpu else float("inf")
    budget = arguments.budget if arguments.budget is not None else (0.0 if on_gpu else 220.0)
    torch.set_num_threads(arguments.threads)
    quiet()
    images = Batches((arguments.batch_size, 3, arguments.image_size, arguments.image_size), 1).batch["image"]

    console = Console(width=None if Console().is_terminal else 140)
    where = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {arguments.threads} thread(s)"
    setting = f"K={arguments.num_slots}, {arguments.image_size} px, batch {arguments.batch_size}"
    table = Table(
        title=f"{setting}; {where}; torch {torch.__version__}",
        caption="kernels: operations dispatched forward and backward; syncs: waits of the host for the "
        "device; counted eager\nof peak: of a dense 3x3 convolution, forward and backward, in the same "
        "precision",
    )
    for column in ("model", "variant"):
        table.add_column(column)
    for column in ("s/step", "ratio", "images/s", "memory", "GFLOP", "kernels", "syncs", "of peak", "peak"):
        table.add_column(column, justify="right")

    began, peaks, flops, base = time.perf_counter(), dict[str, float](), dict[str, int](), dict[str, float]()
    for name, variant in ((name, variant) for name in arguments.models for variant in chosen):
        left, kind = budget - (time.perf_counter() - began), variant.kind(device)
        try:
            if budget and left <= 0.0:
                raise TimeoutError(OVER_BUDGET)
            with at_most(max(left, 0.0) if budget else 0.0):
                if kind not in peaks:
                    peaks[kind] = convolution_peak(variant, device)
                row = measure(variant, device, arguments.num_slots, images, steps, patience, name)
        except Exception as error:  # a variant that fails is a row, not the end
            reason = f"failed: {(str(error).strip() or type(error).__name__).splitlines()[0][:160]}"
            if budget and time.perf_counter() - began >= budget:  # the compiler may hide the TimeoutError
                reason = f"left out: {OVER_BUDGET}"
            table.add_row(name, variant.name, *["–"] * 9)
            console.print(f"{name}, {variant.name}: {reason}")
            continue
        if row.counts is not None:
            flops.setdefault(name, row.counts.flops)
        base.setdefault(name, row.seconds)
        console.print(f"{name}, {variant.name}: {row.seconds:.4g} s/step")
        table.add_row(
            name,
            variant.name,
            f"{row.seconds:.4g}",
            f"{base[name] / row.seconds:.2f}x",
            f"{len(images) / row.seconds:.1f}",
            f"{row.memory / 2**30:.2f} GiB",
            f"{flops.get(name, 0) / 1e9:.1f}",
            "–" if row.counts is None else str(row.counts.kernels.total()),
            "–" if row.counts is None else str(row.counts.syncs.total()),
            f"{flops.get(name, 0) / row.seconds / peaks[kind]:.0%}",
            f"{peaks[kind] / 1e9:.0f} GFLOP/s",
        )
    console.print(table)


if __name__ == "__main__":
    main()
