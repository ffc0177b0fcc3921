"""Goes back to an earlier checkpoint, inside the running training, after a step that failed."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.utilities import rank_zero_info

from lightning_genesis.callbacks.checkpoints import RunCheckpoints
from lightning_genesis.callbacks.finite_gate import DIVERGENCE, Failure, FiniteGate
from lightning_genesis.errors import CheckpointError, ConfigurationError
from lightning_genesis.storage.checkpoint import read_checkpoint
from lightning_genesis.storage.finite import not_finite

COLUMNS = ("step", "cause", "value", "checkpoint", "checkpoint_step")


@dataclass
class RollbackOptions:
    """What follows a step that is not finite, or whose error and KL have run away.

    Args:
        max_rollbacks: how often the run may go back to an earlier checkpoint and on from there; after that,
            and with 0 at once, it stops.
        divergence: error plus KL in nats per image above which a step has failed; no bound if None.
        soon: a failure within so many steps of the last rollback goes back one checkpoint further.
    """

    max_rollbacks: int = 0
    divergence: float | None = DIVERGENCE
    soon: int = 1000

    def __post_init__(self) -> None:
        for name in ("max_rollbacks", "soon"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"rollback.{name}={getattr(self, name)}: expected 0 or more")
        if self.divergence is not None and not self.divergence > 0.0:
            raise ConfigurationError(
                f"rollback.divergence={self.divergence}: expected a positive number, or null for no bound"
            )


class Rollback(pl.Callback):
    """Restores weights, optimiser, objective and learning-rate schedule where `FiniteGate` would stop a run.

    It then goes on with the batches that follow and with fresh noise: the same step again would likely fail
    again. The step counter goes on too, so that the data, the logs and everything that falls due by the step
    keep running forwards, on all ranks and in one process. So do the random generators and, in float16, the
    loss scale. What counts its own steps is restored with the rest: Adam's bias correction, a warm-up of β,
    the learning-rate schedule.

    Every rollback is a row of `rollbacks.csv` in the run's folder and a line on the console. The file says
    what happened: a run that is resumed from an earlier step keeps its rows.

    Args:
        folder: of the run.
        options: how often, and from where.
    """

    def __init__(self, folder: Path, options: RollbackOptions) -> None:
        self.folder, self.options = folder, options
        self.used = 0
        self._failed_at: int | None = None
        self._restored: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """How many rollbacks there were, and the last one: where it failed, which step was restored."""
        return {"used": self.used, "failed_at": self._failed_at, "restored": self._restored}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run has as many rollbacks left as it had."""
        self.used, self._failed_at = state_dict["used"], state_dict["failed_at"]
        self._restored = state_dict["restored"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tells the gate of the model what to look for and what to try, and what saves what to try."""
        for callback in trainer.callbacks:
            if isinstance(callback, FiniteGate):
                callback.divergence = self.options.divergence
                callback.recover = self.recover if self.options.max_rollbacks else None
            if isinstance(callback, RunCheckpoints):
                callback.recover = self._recover_state

    def recover(self, trainer: pl.Trainer, pl_module: pl.LightningModule, failure: Failure) -> bool:
        """Goes back, on all ranks; False if there are no rollbacks left, or nothing to go back to."""
        if self.used >= self.options.max_rollbacks:
            return False
        # One rank decides: folders shared by machines are not always up to date.
        found = self._choose(trainer, failure.step) if trainer.is_global_zero else None
        path, step = trainer.strategy.broadcast(found) or (None, 0)
        if path is None:
            return False
        restore(trainer, pl_module, read_checkpoint(path))
        self.used += 1
        self._failed_at, self._restored = failure.step, step
        if trainer.is_global_zero:
            self._write((failure.step, failure.cause, failure.value, path, step))
        rank_zero_info(
            f"step {failure.step}: {failure.cause}; restored step {step} from {path}, "
            f"rollback {self.used} of {self.options.max_rollbacks}"
        )
        return True

    def _recover_state(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int, cause: str
    ) -> bool:
        return self.recover(trainer, pl_module, Failure(step, cause, math.nan))

    def _choose(self, trainer: pl.Trainer, failed_at: int) -> tuple[str, int] | None:
        """The newest checkpoint to go back to, finite as far as it can be seen, and its step."""
        steps: dict[str, int] = {}
        kept = [str(path) for path in sorted((self.folder / "checkpoints").glob("*.ckpt"))]
        for path in (*([str(trainer.ckpt_path)] if trainer.ckpt_path else []), *kept):
            try:
                found = read_checkpoint(path)
                if not not_finite(found):
                    steps[path] = found["global_step"]
            except CheckpointError:  # damaged: there may be another
                continue
        # A run that was resumed from an early checkpoint may still have later ones of its first life.
        steps = {path: step for path, step in steps.items() if step <= failed_at}
        if not steps:
            return None
        if self._failed_at is not None and failed_at - self._failed_at <= self.options.soon:
            assert self._restored is not None
            earlier = {path: step for path, step in steps.items() if step < self._restored}
            steps = earlier or {path: step for path, step in steps.items() if step == min(steps.values())}
        return max(steps.items(), key=lambda item: item[1])

    def _write(self, row: tuple[Any, ...]) -> None:
        path = self.folder / "rollbacks.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row] if path.is_file() else [COLUMNS, row]
        with open(path, "a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)


def restore(trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Puts a checkpoint's weights, average, objective, optimiser and schedule into a running training."""
    pl_module.load_state_dict(checkpoint["state_dict"])
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging):  # takes the average from there, and the weights in training
            callback.on_load_checkpoint(trainer, pl_module, checkpoint)
    trainer.strategy.load_optimizer_state_dict(checkpoint)
    for config, state in zip(trainer.lr_scheduler_configs, checkpoint["lr_schedulers"], strict=True):
        config.scheduler.load_state_dict(state)
