"""How fast a run goes."""

from time import perf_counter
from typing import Any

import pytorch_lightning as pl


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
