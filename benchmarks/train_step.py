"""A training step of GENESIS-V2 in every precision, with and without `torch.compile`.

Prints seconds per step (the median), images per second, peak memory, counted floating-point operations,
dispatched kernels and host synchronisations, and the share of the convolution speed that this machine reaches
in the same precision. Run as `python benchmarks/train_step.py [--device cuda]`; on a CPU it takes at most
`--budget` seconds, and says which rows that left out.
"""

import argparse
import contextlib
import gc
import resource
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from counting import Counts, count_operations
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_genesis.models import GenesisV2

OVER_BUDGET = "over the budget; give more seconds with --budget, or 0 for no limit"


@dataclass(frozen=True)
class Variant:
    """One way to take the step."""

    name: str
    bfloat16: bool = False
    compile: str | None = None
    tf32: bool = False

    @property
    def precision(self) -> str:
        """What the convolutions compute in."""
        return "bfloat16" if self.bfloat16 else "TF32" if self.tf32 else "float32"


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
        found.append(Variant("TF32", tf32=True))
    modes = ["default", "reduce-overhead"] if device.type == "cuda" else ["default"]
    for mode in modes:
        found.append(Variant(f"compile {mode}", compile=mode))
        found.append(Variant(f"compile {mode}, bfloat16", bfloat16=True, compile=mode))
        if device.type == "cuda":
            found.append(Variant(f"compile {mode}, TF32", tf32=True, compile=mode))
    return found


@contextlib.contextmanager
def precision(variant: Variant, device: torch.device) -> Iterator[None]:
    """Autocast and TF32 as the variant has them."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = variant.tf32
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=variant.bfloat16):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


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


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, to the end of its work on the device."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


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


def convolution_peak(variant: Variant, device: torch.device) -> float:
    """Best floating-point operations per second of a dense 3x3 convolution, forward and backward."""
    batch, channels, size = (32, 512, 64) if device.type == "cuda" else (16, 128, 64)
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
    variant: Variant, device: torch.device, num_slots: int, images: Tensor
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The whole step, and the part whose operations are counted: all but the optimiser."""
    torch.manual_seed(0)
    model = GenesisV2(num_slots, images.shape[-1], compile=variant.compile).to(device).train()
    model.configure_model()
    optimizer = model.configure_optimizers()

    def forward_and_backward() -> None:
        optimizer.zero_grad()
        if variant.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with precision(variant, device):
            terms = model.loss_terms(model(images), images)
            loss = model.objective(terms, num_dimensions=images[0].numel())
        loss.backward()
        model.objective.update()

    def step() -> None:
        forward_and_backward()
        optimizer.step()

    return step, forward_and_backward


def count(variant: Variant, device: torch.device, num_slots: int, images: Tensor) -> Counts | None:
    """Counts of a step; its kernels do not depend on the batch, its operations are proportional to it."""
    if variant.compile is not None:
        return None  # a compiled graph is not dispatched operation by operation
    small = images[:2]
    _, forward_and_backward = make_step(variant, device, num_slots, small)
    with count_operations() as counts:
        forward_and_backward()
    counts.flops = counts.flops * len(images) // len(small)
    return counts


def measure(
    variant: Variant, device: torch.device, num_slots: int, images: Tensor, steps: int, patience: float
) -> Row:
    """Takes the steps, at least one, and no further one after `patience` seconds of them."""
    torch._dynamo.reset()
    counts = count(variant, device, num_slots, images)
    start_memory(device)
    step, _ = make_step(variant, device, num_slots, images)
    for _ in range(3 if device.type == "cuda" else 1):
        step()
    seconds: list[float] = []
    while len(seconds) < steps and (sum(seconds) < patience or not seconds):
        seconds.append(timed(step, device))
    return Row(statistics.median(seconds), peak_memory(device), counts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-slots", type=int, default=7)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument(
        "--steps", type=int, help="timed steps of each; 50 on a GPU, 5 or 10 s of them on a CPU"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget", type=float, help="seconds at most, 0 for no limit; 220 on a CPU")
    arguments = parser.parse_args()
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if arguments.device == "auto" else arguments.device)
    on_gpu = device.type == "cuda"
    steps = arguments.steps or (50 if on_gpu else 5)
    patience = 10.0 if arguments.steps is None and not on_gpu else float("inf")
    budget = arguments.budget if arguments.budget is not None else (0.0 if on_gpu else 220.0)
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module="torch")
    images = torch.rand(arguments.batch_size, 3, arguments.image_size, arguments.image_size, device=device)

    console = Console(width=None if Console().is_terminal else 140)
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {arguments.threads} thread(s)"
    setting = f"K={arguments.num_slots}, {arguments.image_size} px, batch {arguments.batch_size}"
    table = Table(
        title=f"GENESIS-V2, {setting}; {name}; torch {torch.__version__}",
        caption="kernels: operations dispatched forward and backward; syncs: waits of the host for the "
        "device; counted eager\nof peak: of a dense 3x3 convolution, forward and backward, in the same "
        "precision",
    )
    table.add_column("variant")
    for column in ("s/step", "ratio", "images/s", "memory", "GFLOP", "kernels", "syncs", "of peak", "peak"):
        table.add_column(column, justify="right")

    began, peaks, flops, base = time.perf_counter(), dict[str, float](), 0, float("nan")
    for variant in variants(device):
        left = budget - (time.perf_counter() - began)
        try:
            if budget and left <= 0.0:
                raise TimeoutError(OVER_BUDGET)
            with at_most(max(left, 0.0) if budget else 0.0), console.status(variant.name):
                if variant.precision not in peaks:
                    peaks[variant.precision] = convolution_peak(variant, device)
                row = measure(variant, device, arguments.num_slots, images, steps, patience)
        except Exception as error:  # a variant that fails is a row, not the end
            reason = f"failed: {(str(error).strip() or type(error).__name__).splitlines()[0][:160]}"
            if budget and time.perf_counter() - began >= budget:  # the compiler may hide the TimeoutError
                reason = f"left out: {OVER_BUDGET}"
            table.add_row(variant.name, *["–"] * 9)
            console.print(f"{variant.name}: {reason}")
            continue
        if row.counts is not None:
            flops = flops or row.counts.flops
        base = row.seconds if variant == Variant("float32") else base
        peak = peaks[variant.precision]
        console.print(f"{variant.name}: {row.seconds:.4g} s/step")
        table.add_row(
            variant.name,
            f"{row.seconds:.4g}",
            f"{base / row.seconds:.2f}x",
            f"{len(images) / row.seconds:.1f}",
            f"{row.memory / 2**30:.2f} GiB",
            f"{flops / 1e9:.1f}",
            "–" if row.counts is None else str(row.counts.kernels.total()),
            "–" if row.counts is None else str(row.counts.syncs.total()),
            f"{flops / row.seconds / peak:.0%}",
            f"{peak / 1e9:.0f} GFLOP/s",
        )
    console.print(table)


if __name__ == "__main__":
    main()
