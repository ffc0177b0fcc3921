"""How fast a run goes, and what its progress bar shows."""

from time import perf_counter
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from lightning_genesis.runs.loggers import RunCSVLogger

SHOWN = ("train/nll_per_dim", "train/kl", "val/ari_fg")


class Throughput(pl.Callback):
    """Logs `time/images_per_second` and `time/data_fraction`, the share of time spent waiting for data."""

    def __init__(self) -> None:
        self._start = self._batch_end = perf_counter()
        self._images, self._waited = 0, 0.0
        self._logged = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves out what happens between epochs."""
        self._restart()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves out validation."""
        self._restart()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Counts the time since the last batch as waiting."""
        self._waited += perf_counter() - self._batch_end

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs whenever other values are logged."""
        self._batch_end = perf_counter()
        self._images += len(batch["image"]) * trainer.world_size
        step = trainer.global_step
        # the micro-batches that are accumulated for a step are of one step
        if step % trainer.log_every_n_steps == 0 and step != self._logged:
            self._logged = step
            elapsed = self._batch_end - self._start
            for logger in trainer.loggers:
                values = {
                    "time/images_per_second": self._images / elapsed,
                    "time/data_fraction": self._waited / elapsed,
                }
                logger.log_metrics(values, step=step - 1)
            self._restart()

    def _restart(self) -> None:
        self._start = self._batch_end = perf_counter()
        self._images, self._waited = 0, 0.0


class ProgressBar(RichProgressBar):
    """Lightning's bar with the newest logged values; nothing is read from the device for it."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """A few values by their short names."""
        latest = next((x.latest for x in trainer.loggers if isinstance(x, RunCSVLogger)), {})
        return {name.split("/")[1]: f"{latest[name]:.4g}" for name in SHOWN if name in latest}

    def _get_train_description(self, current_epoch: int) -> str:
        """Runs are counted in steps, not epochs."""
        return "Training"
