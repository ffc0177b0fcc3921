"""Every model as the papers have it, and a Trainer on batches that are there already, for benchmarks."""

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_genesis import models
from lightning_genesis.models import SceneModel

SLOT_ATTENTION: dict[str, Any] = {
    "encoder": "slot_attention",
    "order": "none",
    "cross_order_kl": False,
    "segregation_loss": False,
    "shared_decoder": True,
}
EMORL: dict[str, Any] = {
    "encoder": "emorl",
    "encoder_options": {"num_refinements": 2, "final_refinements": 2},
}
MODELS: dict[str, Callable[..., SceneModel]] = {
    "GENESIS": models.Genesis,
    "GENESIS-S": lambda k, size, **common: models.Genesis(k, size, two_stage=False, **common),
    "MONet-G": models.MONet,
    "GENESIS-V2": models.GenesisV2,
    "SRI-MoG": models.SRI,
    "SRI-SA*": lambda k, size, **common: models.SRI(k, size, **SLOT_ATTENTION, **common),
    "SRI-EMORL": lambda k, size, **common: models.SRI(k, size, **EMORL, **common),
    "EMORL": models.EfficientMORL,
    "SlotAttention": models.SlotAttention,
    "BD-VAE": lambda k, size, **common: models.VAE(1, size, **common),
    "DC-VAE": lambda k, size, **common: models.VAE(1, size, decoder="deconv", **common),
    "SceneGenesisV2": models.SceneGenesisV2,
    "SceneGenesis": models.SceneGenesis,
}
"""By name: what makes the model of K slots on images of a size, with what every model takes besides."""


class Batches(Dataset[dict[str, Any]]):
    """The same batch again and again; nothing is read or drawn while it is used.

    Args:
        images: uint8 `[B, 3, H, W]`, or random ones of that shape.
        count: how often.
    """

    def __init__(self, images: Tensor | Sequence[int], count: int) -> None:
        if not isinstance(images, Tensor):
            generator = torch.Generator().manual_seed(0)
            images = torch.randint(0, 256, tuple(images), dtype=torch.uint8, generator=generator)
        self.count = count
        size = images.shape[-1]
        stripes = (torch.arange(size) * 3 // size).to(torch.uint8)
        self.batch = {
            "image": images,
            "index": torch.arange(len(images)),
            "segmentation": stripes.expand(len(images), size, size).contiguous(),
        }

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.batch

    def loader(self) -> DataLoader[Any]:
        """Gives the batch as it is."""
        return DataLoader(self, batch_size=None, pin_memory=torch.cuda.is_available())


def trainer_on(device: torch.device, **options: Any) -> pl.Trainer:
    """Lightning's Trainer on one device, with what every run has besides callbacks and loggers of its own."""
    options = {
        "accelerator": device.type,
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": -1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1_000_000,
        **options,
    }
    return pl.Trainer(**options)
