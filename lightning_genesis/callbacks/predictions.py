"""Writes what a model says about images to disk, for `predict`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.callbacks import BasePredictionWriter
from torchvision.utils import save_image

from lightning_genesis.figures.drawing import SLOT_COLOURS
from lightning_genesis.scene import Scene


class PredictionWriter(BasePredictionWriter):
    """Writes a folder of pictures for every image.

    A folder is named like the image, with its suffix, or by the image's index. In it are
    `reconstruction.png`, `segmentation.png` (slot ids with a palette), `segmentation_attention.png` where the
    model has such masks, and per slot `component_K.png` and `mask_K.png`, the mask that the reconstruction is
    mixed by: the decoded one, in MONet that of the attention.

    Args:
        folder: the run's folder; the images go to `predictions/` in it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder / "predictions"

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes one batch, each image under its name or its index in the split."""
        names = batch.get("name") or [f"{index:06d}" for index in batch["index"].tolist()]
        scene = prediction.map(lambda tensor: tensor.detach().float().cpu())
        for position, name in enumerate(names):
            write_scene(self.folder / name, scene, position)


def write_scene(folder: Path, scene: Scene, position: int) -> None:
    """Writes the scene of one image of a batch into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_image(scene.reconstruction[position], folder / "reconstruction.png")
    _write_ids(folder / "segmentation.png", scene.segmentation()[position].numpy())
    if scene.attention_log_masks is not None:
        ids = scene.segmentation("attention")[position].numpy()
        _write_ids(folder / "segmentation_attention.png", ids)
    for slot in range(scene.num_slots):
        save_image(scene.components[position, slot], folder / f"component_{slot}.png")
        save_image(scene.masks[position, slot], folder / f"mask_{slot}.png")


def _write_ids(path: Path, ids: np.ndarray) -> None:
    image = Image.fromarray(ids.astype(np.uint8), mode="P")
    image.putpalette([value for colour in SLOT_COLOURS for value in colour])
    image.save(path)
