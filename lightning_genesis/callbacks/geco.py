"""Moves a model's objective."""

from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer


class GECOCallback(pl.Callback):
    """Moves the objective once per optimiser step, after backward, and logs its state.

    The objective itself is a module of the model and holds the state, so that weights and checkpoints carry
    it; the error it is moved by was averaged over micro-batches and is averaged over ranks here.
    """

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Moves the objective, unless the step is gated."""
        objective: Any = pl_module.objective
        objective.update(pl_module.finite)
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            pl_module.log_dict(objective.log_values())
