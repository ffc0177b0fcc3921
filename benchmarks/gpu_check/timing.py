"""(f) How fast a step is: every model eager, then GENESIS-V2 and others compiled."""

import torch

from benchmarks.all_models import MODELS, Batches
from benchmarks.gpu_check.part import Outcome, Report
from benchmarks.train_step import Variant, convolution_peak, measure, quiet

COMPILED = ("GENESIS-V2", "GENESIS", "SRI-MoG")
FIRST = ("GENESIS-V2", "SRI-MoG")


def main(report: Report) -> None:
    quiet()
    device = torch.device(report.device)
    slots, side, batch = (3, 32, 2) if report.tiny else (7, 64, 32)
    images = Batches((batch, 3, side, side), 1).batch["image"]
    peaks, flops = dict[str, float](), dict[str, int]()

    def look(name: str, variant: Variant) -> Outcome:
        kind = variant.kind(device)
        if kind not in peaks:
            peaks[kind] = convolution_peak(variant, device, 16 if report.tiny else 0)
        row = measure(variant, device, slots, images, 1 if report.tiny else 50, 3.0, name)
        if row.counts is not None:
            flops.setdefault(name, row.counts.flops)
        values = {
            "ms": row.seconds * 1e3,
            "images/s": len(images) / row.seconds,
            "GiB": row.memory / 2**30,
            "of peak": flops.get(name, 0) / row.seconds / peaks[kind],
            "peak TFLOP/s": peaks[kind] / 1e12,
            "kernels": None if row.counts is None else row.counts.kernels.total(),
        }
        return Outcome(values)

    chosen = report.models or MODELS
    names = [name for name in FIRST if name in chosen] + [name for name in chosen if name not in FIRST]
    half, single = Variant("bfloat16", bfloat16=True), Variant("float32")
    eager = [single] if report.tiny else [half, single]
    items = [(name, variant, 3.0) for name in names for variant in eager]
    compiled: list[tuple[str, Variant, float]] = []
    if not report.tiny:
        items += [(name, Variant("float32, exact", exact=True), 3.0) for name in names]
        # compiling takes tens of seconds a model: what matters most first, and after the two that matter most
        best = Variant("compiled, bfloat16", bfloat16=True, compile="default")
        compiled = [(name, best, 20.0) for name in COMPILED if name in names]
    for name, variant, needs in [*items[:4], *compiled[:1], *items[4:], *compiled[1:]]:
        report.item(f"{name}, {variant.name}", lambda n=name, v=variant: look(n, v), needs)
