"""Structural accuracy of a model's samples at the end of a test."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info

from lightning_genesis.bounds import check_number
from lightning_genesis.callbacks.pictures import SAMPLE_SEED
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.evaluation.split import EvaluatedSplit, choose_images
from lightning_genesis.metrics.structural_accuracy import StructuralAccuracy
from lightning_genesis.scene import IndexedNoise, Scene

NUM_IMAGES = 1000
"""Samples by default. SRI's authors labelled 100: then the interval is some 15 points wide."""
CONTROLS = {"true": "their true masks", "reconstructed": "the model's reconstruction"}
"""What is said of test images, as suffixes of the metrics, and in words."""
JUDGE = "automatic, 2"
"""Which judgement: with `automatic` colours were means, and a block's place went by shared columns."""


class StructureCallback(pl.Callback):
    """Judges samples of a model that was trained on towers of blocks: `test/s_acc` and its interval.

    See `StructuralAccuracy` for the names and docs/structural-accuracy.md for what they mean. Sample `i` has
    noise of its own, whatever the batches and ranks, and is the one that FID and the pictures use. Skipped,
    with one line that says why, where the model cannot sample or its samples have no masks.

    Two controls stand beside it, from towers that are correct: `..._true` of test images with their true
    masks, where there are any, which is what the judgement itself loses, and `..._reconstructed` of the
    model's reconstructions of these images with its decoded masks, what its decoder loses as well.

    Args:
        num_images: samples, and test images of the controls; 0 computes nothing.
        temperature: of the samples.
        batch_size: samples at once, on each rank; changes nothing but speed.
    """

    def __init__(self, num_images: int = NUM_IMAGES, temperature: float = 1.0, batch_size: int = 50) -> None:
        if num_images < 0:
            raise ConfigurationError(f"structure.num_images: {num_images}, expected 0 or more")
        if batch_size < 1:
            raise ConfigurationError(f"structure.batch_size: {batch_size}, expected 1 or more")
        check_number("structure.temperature", temperature, 0)
        self.num_images, self.temperature, self.batch_size = num_images, temperature, batch_size
        self.values: dict[str, float] = {}
        """What was found, by name; empty where it was skipped."""
        self.options: dict[str, Any] = {}
        """What the values depend on, plain data."""

        self._controls: dict[str, StructuralAccuracy] = {}

    @torch.no_grad()
    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Decides whether there is something to do, and chooses the images of the controls."""
        self.values, self.options, self._controls = {}, {}, {}
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
        length = len(EvaluatedSplit.of(trainer))
        self._chosen = torch.zeros(length, dtype=torch.bool)
        self._chosen[choose_images(length, self.num_images)] = True
        self._controls = {name: StructuralAccuracy().to(pl_module.device) for name in CONTROLS}

    @torch.no_grad()
    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Judges the true masks and the reconstructions of the chosen images of a batch."""
        if not self._controls:
            return
        images, index = batch["image"], batch["index"].cpu()
        rows = self._chosen[index].nonzero().squeeze(1).to(images.device)
        if not len(rows):
            return
        scene: Scene = outputs["scene"]
        self._controls["reconstructed"].update(scene.segmentation()[rows], scene.reconstruction[rows])
        if "segmentation" in batch and batch["segmentation"].shape[1:] == images.shape[2:]:
            self._controls["true"].update(batch["segmentation"][rows], images[rows])

    @torch.no_grad()
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draws samples, judges, logs."""
        if not self._controls:
            return
        metric = StructuralAccuracy().to(pl_module.device)
        mine = range(trainer.global_rank, self.num_images, trainer.world_size)
        for first in range(0, len(mine), self.batch_size):
            index = list(mine[first : first + self.batch_size])
            noise = IndexedNoise(SAMPLE_SEED, index)
            scene = pl_module.sample(len(index), temperature=self.temperature, noise=noise)
            metric.update(scene.segmentation(), scene.reconstruction)
        self.values = metric.compute()
        said = [f"{share_text(self.values)} of {self.num_images:,} samples"]
        counts = torch.stack([control.sums[-1] for control in self._controls.values()])
        counts = pl_module.all_gather(counts).reshape(-1, len(counts)).sum(dim=0)
        for (name, control), count in zip(self._controls.items(), counts.tolist(), strict=True):
            found = control.compute()
            if count:
                self.values |= {f"{kept}_{name}": found[kept] for kept in ("s_acc", "num_blocks")}
                said.append(f"{share_text(found)} of {count:,} test images by {CONTROLS[name]}")
        rank_zero_info(f"S-Acc: {'; '.join(said)}")
        self.options = {
            "num_samples": self.num_images,
            "num_controls": int(self._chosen.sum()),
            "temperature": self.temperature,
            "sample_seed": SAMPLE_SEED,
            "judge": JUDGE,
        }
        self._controls = {}
        for name, value in self.values.items():
            pl_module.log(f"test/{name}", value, sync_dist=True)


def share_text(values: dict[str, float]) -> str:
    """S-Acc with its interval, in percent."""
    share, low, high = (100 * values[name] for name in ("s_acc", "s_acc_low", "s_acc_high"))
    return f"{share:.1f}% [{low:.1f}, {high:.1f}]"
