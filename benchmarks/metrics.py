"""Adjusted Rand index of 320 images of 128x128 with 10 slots: ours against scikit-learn.

Prints milliseconds (the best of several runs) and their ratio, for the batches of 32 in which GENESIS
evaluates and for all images at once. Run as `python benchmarks/metrics.py [--device cuda]`.
"""

import argparse
import time
from collections.abc import Callable

import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from lightning_genesis.metrics import adjusted_rand_index, segmentation_metrics

NUM_IMAGES, SIZE, NUM_SLOTS = 320, 128, 10


def disks(num_labels: int, generator: torch.Generator) -> Tensor:
    """Label maps with one disk per label over label 0, as in a scene, int64 `[B, H, W]`."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    labels = torch.zeros(NUM_IMAGES, SIZE, SIZE, dtype=torch.int64)
    for label in range(1, num_labels):
        centre = torch.rand(NUM_IMAGES, 2, 1, 1, generator=generator) * SIZE
        distance = (rows - centre[:, 0]).square() + (columns - centre[:, 1]).square()
        labels[distance < (SIZE / 6) ** 2] = label
    return labels


def milliseconds(function: Callable[[], object], repeats: int, device: str) -> float:
    """Shortest time of a call, after one to warm up."""
    best = float("inf")
    for _ in range(repeats + 1):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 1000 * best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    target = disks(7, generator)
    noise = torch.rand(target.shape, generator=generator) < 0.1
    prediction = torch.where(noise, torch.randint(NUM_SLOTS, target.shape, generator=generator), target)
    pairs = list(zip(target.flatten(1).numpy(), prediction.flatten(1).numpy(), strict=True))

    def reference() -> Tensor:
        return torch.tensor([adjusted_rand_score(*pair) for pair in pairs], dtype=torch.float64)

    target, prediction = target.to(torch.uint8).to(arguments.device), prediction.to(arguments.device)
    batches = list(zip(prediction.split(32), target.split(32), strict=True))
    collection = segmentation_metrics(NUM_SLOTS).to(arguments.device)

    def ours() -> Tensor:
        return adjusted_rand_index(prediction, target, num_slots=NUM_SLOTS)

    def ours_in_batches() -> Tensor:
        return torch.cat([adjusted_rand_index(*batch, num_slots=NUM_SLOTS) for batch in batches])

    def all_six() -> None:
        for batch in batches:
            collection.update(*batch)

    difference = (ours().cpu() - reference()).abs().max().item()
    slow = milliseconds(reference, 2, "cpu")
    print(
        f"{NUM_IMAGES} images of {SIZE}x{SIZE}, K = {NUM_SLOTS}, {arguments.device}, "
        f"{arguments.threads} thread(s); largest difference {difference:.1e}"
    )
    print(f"scikit-learn, image by image  {slow:8.1f} ms")
    for name, function in (
        ("ours, batches of 32", ours_in_batches),
        ("ours, all at once", ours),
        ("all six scores, batches of 32", all_six),
    ):
        fast = milliseconds(function, 10, arguments.device)
        print(f"{name:30s}{fast:8.1f} ms   ratio {slow / fast:6.1f}")


if __name__ == "__main__":
    main()
