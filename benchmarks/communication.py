"""What one training step communicates between ranks, for every model, and what scaling follows from it.

Bytes and collectives are arithmetic over weights, DDP's buckets and the gate's vector;
`tests/test_communication.py` compares them with what goes through a process group. Times are computed from
assumed speeds, none is measured. Run as `python -m benchmarks.communication [--counts FILE]`, where FILE is
what `benchmarks/fake_cuda/run` printed: it gives the time of a step on one GPU, the largest of its traffic,
its operations and the launches of its kernels.
"""

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.all_models import MODELS
from benchmarks.train_step import at_step_0
from lightning_genesis.models import SceneModel
from lightning_genesis.models.parallel import not_in_every_forward
from tests.fake_cuda import put_on

FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
"""Bytes of gradients that DDP sends together: the first that are ready, and all others."""
IN_A_NODE, BETWEEN_NODES = 300e9, 50e9
"""Assumed bytes per second and GPU of an all-reduce: NVLink in a node of 8; 400 Gbit/s between nodes."""
START_IN_A_NODE, START_BETWEEN_NODES = 20e-6, 100e-6
"""Assumed seconds that a collective takes at least."""
COPY, PRODUCTS, LAUNCH = 3.0e12, 400e12, 5e-6
"""Assumed of one H100: bytes per second, half of its bf16 ceiling, seconds of Python per kernel."""


@dataclass(frozen=True)
class Communication:
    """Of one rank in one optimiser step."""

    gradients: int
    """Bytes, float32."""
    buckets: int
    """All-reduces that they take."""
    report: int
    """Bytes of the gate's vector, which is gathered from all ranks."""
    buffers: int
    """Bytes that rank 0 sends to all before a forward."""

    def seconds(self, ranks: int) -> float:
        """Computed for a ring: every byte goes out and comes back once, but for the rank's own share."""
        speed, start = (IN_A_NODE, START_IN_A_NODE) if ranks <= 8 else (BETWEEN_NODES, START_BETWEEN_NODES)
        return 2 * (ranks - 1) / ranks * self.gradients / speed + (self.buckets + 1) * start


def communication(model: SceneModel) -> Communication:
    """Of a model, without taking a step: its weights hold no data while its terms are counted."""
    weights = [p for p in model.parameters() if p.requires_grad]
    buckets, _ = dist._compute_bucket_assignment_by_size(weights[::-1], [FIRST_BUCKET, BUCKET])
    constant = {*not_in_every_forward(model)}
    sent = [buffer for name, buffer in model.named_buffers() if name not in constant]
    gradients = sum(p.numel() * p.element_size() for p in weights)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in sent)
    at_step_0(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        put_on(model, "cpu").train()
        images = torch.rand(1, 3, model.image_size, model.image_size)
        terms = model.loss_terms(model(images), images)
        model.objective(terms, num_dimensions=images[0].numel())
        names = model.objective.means(terms).names
    # loss, gradient norm, error plus KL, request to stop
    numbers = len(names) + sum(value.numel() for value in model.objective.state().values()) + 4
    return Communication(gradients, len(buckets), 4 * numbers, buffers)


def read_counts(path: Path) -> dict[str, float]:
    """Seconds of a bf16 step on one GPU, computed from a table of `benchmarks/fake_cuda/run`.

    With LSTMs unrolled, as what cuDNN launches for one is not known.
    """
    found = {}
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in MODELS and len(cells) >= 6:
            kernels = float(cells[2].rpartition("(")[2].rstrip(")"))
            gigabytes, gigaflop = float(cells[4]), float(cells[5])
            found[cells[0]] = max(kernels * LAUNCH, gigabytes * 1e9 / COPY, gigaflop * 1e9 / PRODUCTS)
    return found


def row(name: str, found: Communication, steps: Mapping[str, float]) -> str:
    """A line of the table."""
    cells = [name, f"{found.gradients / 1e6:.1f} MB", str(found.buckets), f"{found.report} B"]
    cells.append(f"{found.buffers} B")
    for ranks in (2, 8, 64):
        seconds = found.seconds(ranks)
        share = f", {steps[name] / (steps[name] + seconds):.0%}" if name in steps else ""
        cells.append(f"{seconds * 1e3:.2f} ms{share}")
    if name in steps:
        cells.insert(5, f"{steps[name] * 1e3:.1f} ms")
    return f"| {' | '.join(cells)} |"


def main(given: Sequence[str] | None = None) -> None:
    """Prints a row for every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--counts", type=Path, help="table of benchmarks/fake_cuda/run")
    parser.add_argument("--num-slots", type=int, default=7)
    parser.add_argument("--image-size", type=int, default=64)
    arguments = parser.parse_args(given)
    warnings.filterwarnings("ignore")
    steps = {} if arguments.counts is None else read_counts(arguments.counts)
    head = ["model", "gradients", "all-reduces", "gate", "buffers", *(["a step"] if steps else [])]
    head += [f"{ranks} GPUs" for ranks in (2, 8, 64)]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for name, make in MODELS.items():
        print(row(name, communication(make(arguments.num_slots, arguments.image_size)), steps), flush=True)


if __name__ == "__main__":
    main()
