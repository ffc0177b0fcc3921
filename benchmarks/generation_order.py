"""How much the place of a slot says about its content.

    OMP_NUM_THREADS=1 python benchmarks/generation_order.py RUN...

Three numbers a run, all `order_consistency` (0: nothing, 1: everything): background against objects, by the
true masks of the test images; the place of objects in a grid of 3x3, likewise; the place of slots in as many
scenes drawn from the prior, which needs no truth. Slots are those of the decoded masks.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import lightning_genesis
from lightning_genesis.metrics import OrderConsistency
from lightning_genesis.metrics.contingency import count_pixels
from lightning_genesis.metrics.order_consistency import object_slots, slot_places
from lightning_genesis.models.base import EVALUATION_SEED
from lightning_genesis.scene import IndexedNoise

GRID = 3


@torch.no_grad()
def consistencies(run: Path) -> list[float]:
    """Background, places of objects, places of generated slots."""
    model, data = lightning_genesis.load(run, "last")
    slots = model.num_slots
    background = OrderConsistency(slots, 2)
    objects, generated = OrderConsistency(slots, GRID**2), OrderConsistency(slots, GRID**2)
    data.prepare()
    data.setup("test")
    loader = data.test_dataloader()
    assert isinstance(loader, DataLoader)
    for number, batch in enumerate(loader):
        batch = model.on_after_batch_transfer(batch, 0)
        truth = batch["segmentation"].long()
        found = object_slots(
            count_pixels(model.predict_step(batch, number).segmentation(), truth, num_slots=slots)
        )
        is_object = torch.arange(found.shape[1]).clamp(max=1).expand_as(found)
        background.update(found, is_object)
        places = slot_places(truth, int(truth.max()) + 1, GRID)[:, 1:]
        objects.update(found[:, 1 : 1 + places.shape[1]], places)
        scenes = model.sample(len(truth), noise=IndexedNoise(EVALUATION_SEED, batch["index"]))
        generated.update(
            torch.arange(slots).expand(len(truth), -1), slot_places(scenes.segmentation(), slots, GRID)
        )
    return [float(score.compute()) for score in (background, objects, generated)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    print("| run | background or object | place of objects | place of generated slots |\n|---|---|---|---|")
    for run in parser.parse_args().runs:
        print(f"| {run.name} | " + " | ".join(f"{value:.2f}" for value in consistencies(run)) + " |")


if __name__ == "__main__":
    main()
