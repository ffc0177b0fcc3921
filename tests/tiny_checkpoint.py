"""A small checkpoint of a trained model, and an exact comparison, for tests."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_genesis.models import SceneModel


class RandomImages(Dataset[dict[str, Any]]):
    """Two random images, `[3, size, size]` in [0, 1]."""

    def __init__(self, size: int) -> None:
        self.images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "index": index}


def train(
    model: SceneModel, max_steps: int = 1, plugins: list[Any] | None = None, resume: Path | None = None
) -> pl.Trainer:
    """A plain Trainer, as somebody uses it who does not use the command."""
    trainer = pl.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=plugins,
    )
    trainer.fit(model, DataLoader(RandomImages(model.image_size), batch_size=2), ckpt_path=resume)
    return trainer


def same(first: Any, second: Any) -> bool:
    """Whether two trees are equal in every type, key, number and bit of a tensor."""
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        kinds = (first.dtype, first.shape) == (second.dtype, second.shape)
        return kinds and first.numpy().tobytes() == second.numpy().tobytes()
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)
