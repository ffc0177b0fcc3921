"""Keeps the run's card: parameters, hardware, time, commit, versions."""

from pathlib import Path
from time import monotonic
from typing import Any

import pytorch_lightning as pl
import torch

import lightning_genesis
from lightning_genesis.runs.card import Card, find_commit, processor, read_card, write_card
from lightning_genesis.runs.results import versions


class RunCard(pl.Callback):
    """Writes `RUN/card.json` when training starts, after every validation, and when it ends for any reason.

    Args:
        folder: the run's. The time in a card that is there is added to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._before, self._start = 0.0, monotonic()
        self._commit: str | None = None
        self._started = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes up the time of earlier starts, where the run goes on."""
        if not trainer.is_global_zero:
            return
        earlier = read_card(self.folder) if trainer.global_step else None
        self._before, self._start = 0.0 if earlier is None else earlier.seconds, monotonic()
        self._commit = find_commit(Path(lightning_genesis.__file__))
        self._started = True
        self._write(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a kill leaves is not older than this."""
        self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last word."""
        self._write(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """The last word of a run that was stopped or failed."""
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self._started or not trainer.is_global_zero:
            return
        parameters = list(pl_module.parameters())
        card = Card(
            parameters=sum(one.numel() for one in parameters),
            trained=sum(one.numel() for one in parameters if one.requires_grad),
            hardware=_hardware(pl_module.device, trainer.world_size),
            precision=str(trainer.precision),
            steps=trainer.global_step,
            seconds=round(self._before + monotonic() - self._start, 1),
            commit=self._commit,
            versions=versions(),
        )
        write_card(self.folder, card)


def _hardware(device: torch.device, count: int) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if device.type == "cpu":
        name = f"{processor()}, {torch.get_num_threads()} threads"
    return (name or device.type) + (f" x {count}" if count > 1 else "")
