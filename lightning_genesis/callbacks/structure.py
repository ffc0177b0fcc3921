"""Structural accuracy of a model's samples at the end of a test."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info

from lightning_genesis.callbacks.pictures import SAMPLE_SEED
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.metrics.structural_accuracy import StructuralAccuracy
from lightning_genesis.scene import IndexedNoise

NUM_IMAGES = 1000
"""Samples by default. SRI's authors labelled 100: then the interval is some 15 points wide."""


class StructureCallback(pl.Callback):
    """Judges samples of a model that was trained on towers of blocks: `test/s_acc` and its interval.

    See `StructuralAccuracy` for the names and docs/structural-accuracy.md for what they mean. Sample `i` has
    noise of its own, whatever the batches and ranks, and is the one that FID and the pictures use. Skipped,
    with one line that says why, where the model cannot sample or its samples have no masks.

    Args:
        num_images: samples; 0 computes nothing.
        temperature: of the samples.
        batch_size: samples at once, on each rank; changes nothing but speed.
    """

    def __init__(self, num_images: int = NUM_IMAGES, temperature: float = 1.0, batch_size: int = 50) -> None:
        if num_images < 0:
            raise ConfigurationError(f"structure.num_images: {num_images}, expected 0 or more")
        if batch_size < 1:
            raise ConfigurationError(f"structure.batch_size: {batch_size}, expected 1 or more")
        self.num_images, self.temperature, self.batch_size = num_images, temperature, batch_size
        self.values: dict[str, float] = {}
        """What was found, by name; empty where it was skipped."""
        self.options: dict[str, Any] = {}
        """What the values depend on, plain data."""

    @torch.no_grad()
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draws samples, judges, logs."""
        self.values, self.options = {}, {}
        towers = getattr(trainer.datamodule, "shows_towers", False)
        if trainer.fast_dev_run or not (self.num_images and towers):
            return
        try:
            one = pl_module.sample(1, noise=IndexedNoise(SAMPLE_SEED, [0]))
        except ConfigurationError as error:
            rank_zero_info(f"S-Acc is skipped: {error}")
            return
        if one.num_slots == 1:
            rank_zero_info(f"S-Acc is skipped: {type(pl_module).__name__} has one slot, and so no masks")
            return
        metric = StructuralAccuracy().to(pl_module.device)
        mine = range(trainer.global_rank, self.num_images, trainer.world_size)
        for first in range(0, len(mine), self.batch_size):
            index = list(mine[first : first + self.batch_size])
            noise = IndexedNoise(SAMPLE_SEED, index)
            scene = pl_module.sample(len(index), temperature=self.temperature, noise=noise)
            metric.update(scene.segmentation(), scene.reconstruction)
        self.values = metric.compute()
        self.options = {
            "num_samples": self.num_images,
            "temperature": self.temperature,
            "sample_seed": SAMPLE_SEED,
            "judge": "automatic",
        }
        for name, value in self.values.items():
            pl_module.log(f"test/{name}", value, sync_dist=True)
