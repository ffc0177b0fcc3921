"""Keeps in every checkpoint which run it belongs to, and puts changed options into effect."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import LearningRateFinder
from pytorch_lightning.utilities import rank_zero_info

from lightning_genesis.optimization.optimizers import set_options
from lightning_genesis.runs.identity import Change, compare


class RunIdentity(pl.Callback):
    """Writes a run's options, and the changes it went through, into its checkpoints.

    On resume, what was changed on purpose takes effect: Lightning restores the optimiser with the learning
    rate and the other options that it was saved with.
    """

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        """What `options_of` says of the run, and its `num_ranks`."""
        self.changes: list[Change] = []
        """All that the run went through, in order."""
        self._new: list[Change] = []

    def resume(self, checkpoint: Mapping[str, Any], allowed: Sequence[str], path: str) -> None:
        """Compares a checkpoint with the run that resumes it, and takes up its changes.

        Raises:
            ConfigurationError: if an option differs that may not.
        """
        self.changes = changes_of(checkpoint)
        step = int(checkpoint.get("global_step", 0))
        if "run_options" in checkpoint or allowed:
            saved = checkpoint.get("run_options", {})
            self._new = compare(saved, self.options, allowed, step, path)
            self.changes += self._new
        for change in self._new:
            rank_zero_info(f"note: {change}")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the options and the changes, as plain data."""
        checkpoint["run_options"] = self.options
        checkpoint["changes"] = [list(change) for change in self.changes]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives a resumed optimiser and its schedule the options that were changed; a new one what was found.

        Lightning's finder sets the optimiser's learning rate, which a schedule then overwrites.
        """
        if self._new or any(isinstance(found, LearningRateFinder) for found in trainer.callbacks):
            model: Any = pl_module
            schedules: list[Any] = [one.scheduler for one in trainer.lr_scheduler_configs]
            for optimizer in trainer.optimizers:
                set_options(
                    getattr(optimizer, "optimizer", optimizer),
                    model.learning_rate,
                    model.hparams["optimizer_options"],
                    schedules[0] if schedules else None,
                )


def changes_of(checkpoint: Mapping[str, Any]) -> list[Change]:
    """The changes that a checkpoint's run went through; none where the checkpoint does not tell."""
    found = checkpoint.get("changes")
    rows = found if isinstance(found, list) else []
    return [Change(*row) for row in rows if isinstance(row, list | tuple) and len(row) == len(Change._fields)]
