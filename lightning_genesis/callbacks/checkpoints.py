"""When a run is saved: the last state, the best one, and some to keep."""

from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

BEST_BY = (("val/ari_fg", "max"), ("val/elbo", "max"), ("val/mse", "min"))
"""What the best checkpoint is chosen by: the first that the run logs."""


@dataclass
class CheckpointOptions:
    """What is saved under `checkpoints/` in the run's folder.

    Args:
        last_every: steps between updates of `last.ckpt`.
        keep_every: steps between the `step-N.ckpt` that are kept; none if None.
        monitor: logged value that `best.ckpt` is chosen by; by default the first of val/ari_fg, val/elbo and
            val/mse that the run has.
        mode: "max" or "min", what is best for `monitor`.
    """

    last_every: int = 1000
    keep_every: int | None = 100_000
    monitor: str | None = None
    mode: str = "max"

    def callbacks(self, run: Path) -> list[pl.Callback]:
        """The callbacks that save into the run's folder."""
        folder = run / "checkpoints"
        callbacks: list[pl.Callback] = [
            BestCheckpoint(folder, self.monitor, self.mode),
            LastCheckpoint(folder, self.last_every),
        ]
        if self.keep_every is not None:
            callbacks.append(KeptCheckpoint(folder, self.keep_every))
        return callbacks


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt`: every so many steps, and when training ends.

    Args:
        folder: where to.
        every: steps between updates.
    """

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(
            folder,
            "last",
            every_n_train_steps=every,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves what came after the last interval."""
        if trainer.global_step != self._last_global_step_saved and not trainer.fast_dev_run:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class KeptCheckpoint(ModelCheckpoint):
    """`step-N.ckpt`, all of which stay.

    Args:
        folder: where to.
        every: steps between them.
    """

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(
            folder,
            "step-{step}",
            every_n_train_steps=every,
            save_top_k=-1,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
        )


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`, after each validation that is the best so far.

    Args:
        folder: where to.
        monitor: what is compared; the first of `BEST_BY` that the run logs if None.
        mode: "max" or "min".
    """

    def __init__(self, folder: Path, monitor: str | None, mode: str) -> None:
        super().__init__(
            folder, "best", monitor=monitor or BEST_BY[0][0], mode=mode, enable_version_counter=False
        )
        self._automatic = monitor is None

    @property
    def state_key(self) -> str:
        """The same whatever the run turns out to log."""
        return type(self).__qualname__

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses by what there is, then saves if it is the best."""
        if self._automatic:
            for monitor, mode in BEST_BY:
                if monitor in trainer.callback_metrics:
                    if monitor != self.monitor:
                        self.monitor, self.mode = monitor, mode
                        self.kth_value = self.kth_value.new_tensor(float("inf" if mode == "min" else "-inf"))
                    break
        super().on_validation_end(trainer, pl_module)


def last_good(trainer: pl.Trainer) -> str:
    """Path of the newest checkpoint of the run, or the one it was resumed from, for messages."""
    last = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint))
    # Of a ModelCheckpoint without a monitor, the best is the newest.
    saved = next((callback.best_model_path for callback in last if callback.best_model_path), None)
    return str(saved or trainer.ckpt_path or "none yet")
