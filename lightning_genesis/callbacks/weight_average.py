"""An exponential moving average of the weights, which is what is evaluated, saved and exported."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging

from lightning_genesis.errors import ConfigurationError


class WeightAverage(EMAWeightAveraging):
    """Lightning's average of the weights, fit for runs that are resumed.

    Validation, `best.ckpt`, `test`, `sample` and `export` have the averaged weights. A checkpoint keeps those
    in training as well, from which a resumed run goes on bit for bit. Two things differ from Lightning's own:
    the weights in training are not replaced at the end, before the last checkpoint is written; and buffers
    (GECO's β, running means) are those in training, not averaged.

    Args:
        decay: weight of the average before in each update, 0 to below 1.
        update_every_n_steps: optimiser steps between updates.
        update_starting_at_step: first step that is averaged; from the start if None.

    Raises:
        ConfigurationError: if the decay is out of its range.
    """

    def __init__(
        self, decay: float = 0.999, update_every_n_steps: int = 1, update_starting_at_step: int | None = None
    ) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigurationError(f"WeightAverage: decay={decay}, expected 0 to below 1")
        if update_every_n_steps < 1:
            raise ConfigurationError(
                f"WeightAverage: update_every_n_steps={update_every_n_steps}, expected 1 or more"
            )
        super().__init__(
            use_buffers=False,
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the weights in training where they are: the last checkpoint is written after this."""
