"""The time that a process may train."""

from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lightning_genesis.errors import ConfigurationError


class TimeLimit(Timer):
    """Lightning's `max_time`, counted anew in every process: a resumed run has as long again.

    Lightning counts over the whole life of a run, so one that has used its time ends at once when resumed.

    Args:
        duration: "DD:HH:MM:SS", or what `timedelta` takes.

    Raises:
        ConfigurationError: if it is neither.
    """

    def __init__(self, duration: str | timedelta | dict[str, int]) -> None:
        try:
            super().__init__(duration=duration, verbose=False)
        except (MisconfigurationException, TypeError) as error:
            raise ConfigurationError(f"trainer.max_time: {duration!r}, expected DD:HH:MM:SS") from error
        self._limit = duration

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see the class."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: see the class."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says how to go on, where the time was what ended the training."""
        super().on_train_end(trainer, pl_module)
        if (self.time_remaining() or 0.0) <= 0.0 and trainer.global_step != trainer.max_steps:
            rank_zero_info(
                f"trainer.max_time {self._limit} is over, after step {trainer.global_step}; the same command "
                "with --ckpt_path last goes on for as long again"
            )
