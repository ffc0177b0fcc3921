"""When a run is saved: the last state, the best one, and some to keep. Always between two steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from lightning_genesis.errors import ConfigurationError, NonFiniteError
from lightning_genesis.storage.finite import not_finite

BEST_BY = ("val/ari_fg", "val/elbo", "val/mse")
"""What the best checkpoint is chosen by: the first that the run logs."""
BEST_SMALL = ("mse", "nll", "nll_per_dim", "kl", "bits_per_dim", "num_active_mae")
"""Of these the least is the best."""
EVERY, PAUSE = 1000, 60.0
"""Steps between updates of `last.ckpt` by default, and seconds at least."""
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


@dataclass
class CheckpointOptions:
    """What is saved under `checkpoints/` in the run's folder.

    Args:
        last_every: steps between updates of `last.ckpt`; the one before it stays as `previous.ckpt`. By
            default 1000, and no more often than once a minute: on a GPU 1000 steps can be three seconds.
        keep_every: steps between the `step-N.ckpt` that are kept; none if None.
        monitor: logged value that `best.ckpt` is chosen by; by default the first of val/ari_fg, val/elbo and
            val/mse that the run has. Where N gradients are accumulated, `val_check_interval` should be a
            multiple of N: `best.ckpt` is written after the next whole step.
        mode: "max" or "min", what is best for `monitor`; by default what its name says.
    """

    last_every: int | None = None
    keep_every: int | None = 100_000
    monitor: str | None = None
    mode: str | None = None

    def __post_init__(self) -> None:
        for name in ("last_every", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"checkpoint.{name}={value}: expected 1 or more steps")
        if self.mode not in (None, "max", "min"):
            raise ConfigurationError(f"checkpoint.mode={self.mode!r}: expected 'max' or 'min'")

    def least_is_best(self, name: str) -> bool:
        """Whether a logged value such as `val/mse` is the better the smaller it is."""
        kind = name.rpartition("/")[2]
        small = kind in BEST_SMALL or kind.startswith(("kl_", "bits_per_dim_"))
        return small if self.mode is None else self.mode == "min"


class Best(NamedTuple):
    """What the best checkpoint was chosen by."""

    name: str
    value: float
    step: int | None
    """None where a run of before has not written it down."""


class RunCheckpoints(Checkpoint):
    """Saves a run so that a resumed one continues bit for bit, whenever it was killed.

    Lightning's `ModelCheckpoint` saves inside a step: before the step's values are logged, and before the
    validation that falls due after it, both of which a run resumed from there would lack. Here everything is
    saved when the next step starts, or at the end of training: all that belongs to the steps before is done
    then, and is on the disk before the checkpoint is.

    A state that is not finite is saved nowhere: the run goes back, where `recover` can, or stops.

    The Trainer needs `DurableCheckpointIO` among its plugins.

    Args:
        folder: where to.
        options: what to save.
    """

    def __init__(self, folder: Path, options: CheckpointOptions) -> None:
        self.folder, self.options = folder, options
        self.last_saved: Path | None = None
        """The newest checkpoint of this process."""
        self.recover: Callable[[pl.Trainer, pl.LightningModule, int, str], bool] | None = None
        """Tried with step and cause where the state is not finite; the run goes on if it says True."""
        self._monitor = options.monitor
        self._best: float | None = None
        self._best_saved: float | None = None
        self._best_step: int | None = None
        self._best_saved_step: int | None = None
        self._best_is_due = False
        self._step, self._last_at = 0, monotonic()
        self._is_between = False

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """What the best so far was, when, and by which value."""
        return {"monitor": self._monitor, "best": self._best, "best_step": self._best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the best so far, if it was chosen by the same value."""
        if self.options.monitor in (None, state_dict["monitor"]):
            self._monitor, best = state_dict["monitor"], state_dict["best"]
            self._best = self._best_saved = best if best is not None and math.isfinite(best) else None
            self._best_step = None if self._best is None else state_dict.get("best_step")
            self._best_saved_step = self._best_step

    @property
    def best(self) -> Best | None:
        """That of the newest `best.ckpt`; None if there is none."""
        if self._monitor is None or self._best_saved is None:
            return None
        return Best(self._monitor, self._best_saved, self._best_saved_step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes back what Lightning has counted of the batch that was fetched but not trained on."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["started"] = counts["completed"]
        progress["is_last_batch"] = False

    # ---------------------------------------------------------------- hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a resumed run was saved with need not be saved again."""
        self._step, self._is_between = trainer.global_step, False
        self._last_at = monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """From now on the state is whole, unless gradients are being accumulated or a validation begins."""
        self._is_between = not trainer.fit_loop._should_accumulate()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A validation that is left early would be missed by the run that is resumed."""
        self._is_between = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decides whether this is the best so far."""
        self._is_between = True
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        values = trainer.callback_metrics
        if self._monitor is None:
            self._monitor = next((name for name in BEST_BY if name in values), None)
        if self._monitor is None:
            return
        if self._monitor not in values:
            raise ConfigurationError(
                f"checkpoint.monitor={self._monitor!r}: not logged by validation, which has "
                f"{', '.join(sorted(name for name in values if name.startswith('val/')))}"
            )
        value = float(values[self._monitor])
        sign = -1 if self.options.least_is_best(self._monitor) else 1
        better = self._best is None or sign * value > sign * self._best
        if better and math.isfinite(value):
            self._best, self._best_step, self._best_is_due = value, trainer.global_step, True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Saves what has fallen due with the step before."""
        # Lightning counts one too many after some resumes; it is the step that values are logged under.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        step = trainer.global_step
        if step == self._step:  # gradients are being accumulated, or nothing was trained on yet
            return
        stopping = bool(getattr(pl_module, "stop_agreed", False))
        self._save(trainer, pl_module, last=stopping or self._last_is_due(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the end, whether or not it falls on an interval."""
        if not trainer.fast_dev_run and trainer.global_step != self._step:
            self._save(trainer, pl_module, last=True)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Saves what was trained before a loader died, if the step was over; several ranks would wait."""
        due = self._is_between and trainer.global_step != self._step
        if due and is_dead_loader(exception) and trainer.world_size == 1:
            self._save(trainer, pl_module, last=True)

    # ---------------------------------------------------------------- saving

    def _is_due(self, step: int, every: int | None) -> bool:
        return every is not None and step // every > self._step // every

    def _last_is_due(self, trainer: pl.Trainer) -> bool:
        if self.options.last_every is not None or not self._is_due(trainer.global_step, EVERY):
            return self._is_due(trainer.global_step, self.options.last_every)
        # ranks save together: the first clock that says so counts for all
        return trainer.strategy.reduce_boolean_decision(monotonic() - self._last_at >= PAUSE, all=False)

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, last: bool) -> None:
        step = trainer.global_step
        # `last` comes last: it says that the others are there.
        names = [BEST] if self._best_is_due else []
        if self._is_due(step, self.options.keep_every):
            names.append(f"step-{step}.ckpt")
        names += [LAST] if last else []
        self._step, self._best_is_due = step, False
        for logger in trainer.loggers if names else ():
            logger.save()
        try:
            self._write(trainer, names)
        except NonFiniteError as error:  # of the first of them: nothing was written
            self._best, self._best_step = self._best_saved, self._best_saved_step
            if self.recover is None or not self.recover(trainer, pl_module, step - 1, error.cause):
                raise
            self._write(trainer, [name for name in names if name != BEST])
        if names and not last and getattr(pl_module, "stop_agreed", False):
            self._write(trainer, [LAST])  # saving has read the request: the run stops here
        self._best_saved, self._best_saved_step = self._best, self._best_step

    def _write(self, trainer: pl.Trainer, names: Sequence[str]) -> None:
        for name in names:
            path = self.folder / name
            keep = {"previous": self.folder / PREVIOUS} if name == LAST else None
            trainer.save_checkpoint(path, weights_only=False, storage_options=keep)
            self.last_saved = path
            self._last_at = monotonic() if name == LAST else self._last_at


def is_dead_loader(error: BaseException) -> bool:
    """Whether torch says that a loader's process was killed, for example for want of memory."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def check_state(trainer: pl.Trainer, module: pl.LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Looks at what is about to be saved; all ranks have to call this.

    Infinity is allowed in buffers of the network, which may hold it on purpose.

    Raises:
        NonFiniteError: on all ranks, if weights, moments or objective are not finite on one.
    """
    found = not_finite(checkpoint, ())
    if found:  # to list names costs as much as the look
        buffers = {name for name, _ in module.named_buffers() if not name.startswith("objective.")}
        found = not_finite(checkpoint, buffers, [name for name, _ in module.named_parameters()])
    if trainer.strategy.reduce_boolean_decision(not found, all=True):
        return
    cause = f"not finite: {found or 'the state of another rank'}"
    raise NonFiniteError(
        f"step {trainer.global_step - 1}: what came of it is {cause}; it was not saved and the run stops. "
        f"Last good checkpoint: {last_good(trainer)}",
        cause,
    )


def last_good(trainer: pl.Trainer) -> str:
    """Path of the newest checkpoint of the run, or the one it was resumed from, for messages."""
    saved = next((c.last_saved for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoints)), None)
    return str(saved or trainer.ckpt_path or "none yet")
