"""Options of Lightning's Trainer that mean something else here, or nothing that works."""

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder, Timer
from pytorch_lightning.utilities import rank_zero_info

from data_modules import SceneDataModule
from lightning_genesis.callbacks.time_limit import TimeLimit
from lightning_genesis.errors import ConfigurationError
from lightning_genesis.precision import check_precision

FINDERS = (LearningRateFinder, BatchSizeFinder)
HANDING_BACK = ("spawn", "fork", "notebook")
"""Ways to start ranks after which Lightning hands the weights back in a file that is no checkpoint."""

STEP_HOOKS = (  # of a callback
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad"),
    *("on_before_backward", "on_after_backward", "on_before_optimizer_step"),
)


def settle(trainer: dict[str, Any], command: str, *, resumes: bool) -> dict[str, Any]:
    """The Trainer's arguments as they are meant, its callbacks as a list.

    - `val_check_interval` as a share of an epoch implies a validation in every epoch.
    - `max_time` is the time of a process, see `TimeLimit`.
    - A resumed run keeps what its finders have found: they are left out, as in `validate`, `test` and
      `predict`, which take any size of batch and give the same.
    - In training, where all batches have one shape, cuDNN looks for its fastest algorithms, unless
      `benchmark` or `deterministic` say otherwise.

    Args:
        trainer: as given; the classes in it are instances.
        command: `fit`, `validate`, `test` or `predict`.
        resumes: whether training goes on from a checkpoint.

    Raises:
        ConfigurationError: for a precision or a way to start ranks that does not work here.
    """
    trainer = dict(trainer)
    check_precision(trainer.get("precision"))
    _check_strategy(trainer.get("strategy"))
    if isinstance(trainer.get("val_check_interval"), float) and not trainer.get("check_val_every_n_epoch"):
        trainer["check_val_every_n_epoch"] = 1
    given = trainer.get("callbacks") or []
    callbacks: list[Callback] = [*given] if isinstance(given, list | tuple) else [given]
    if resumes and any(isinstance(callback, FINDERS) for callback in callbacks):
        rank_zero_info("note: the run goes on with what its finders found; they are not run again")
    if resumes or command != "fit":
        callbacks = [callback for callback in callbacks if not isinstance(callback, FINDERS)]
    if command == "fit" and trainer.get("benchmark") is None and not trainer.get("deterministic"):
        trainer["benchmark"] = True
    limit = trainer.get("max_time")
    if limit is not None and not any(isinstance(callback, Timer) for callback in callbacks):
        callbacks.append(TimeLimit(dict(limit) if isinstance(limit, Mapping) else limit))
        trainer["max_time"] = None
    trainer["callbacks"] = callbacks
    return trainer


def settle_output(config: Any, arguments: Sequence[str]) -> None:
    """Leaves out Lightning's table of all scores, and does not keep every prediction in memory.

    Args:
        config: of a command, as parsed; changed in place.
        arguments: the command line, which may ask for either.
    """
    for name in ("verbose", "return_predictions"):
        if name in config and not any(given.startswith(f"--{name}") for given in arguments):
            config[name] = False


def take_up_batch_size(
    data: SceneDataModule, checkpoint: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Gives a resumed run the batch size that a finder has set: not that of its options.

    Args:
        data: of the run that resumes.
        checkpoint: that it resumes from.
        options: `options_of` the run that resumes; a batch size that was changed on purpose counts.
    """
    key = "data.batch_size"
    saved = checkpoint.get("run_options", {}).get(key)
    state = checkpoint.get(type(data).__qualname__)
    found = state.get("batch_size") if isinstance(state, Mapping) else None
    if type(found) is int and found > 0 and options.get(key) == saved:
        data.batch_size = found


def without_empty_hooks(callbacks: Sequence[Callback]) -> None:
    """Takes from callbacks the hooks of a step that they do not have.

    Lightning calls each of them in every step, with a context around it, where it is callable: some sixty
    calls that do nothing.
    """
    for callback in callbacks:
        for name in STEP_HOOKS:
            if getattr(type(callback), name) is getattr(Callback, name):
                setattr(callback, name, None)


def check_clock(trainer: Trainer) -> None:
    """Refuses a validation by time on several ranks: each would look at its own clock, and wait for others.

    Raises:
        ConfigurationError: saying so.
    """
    if trainer.world_size > 1 and getattr(trainer, "_val_check_time_interval", None) is not None:
        raise ConfigurationError(
            f"trainer.val_check_interval: a time, on {trainer.world_size} ranks, whose clocks differ; "
            "expected a number of batches"
        )


def _check_strategy(strategy: Any) -> None:
    method = getattr(strategy, "_start_method", None)
    name = strategy if isinstance(strategy, str) else f"{type(strategy).__name__} by {method}"
    parts = name.split("_") if isinstance(strategy, str) else [method]
    if any(part in HANDING_BACK for part in parts):
        raise ConfigurationError(
            f"trainer.strategy: {name} starts ranks inside this process and cannot hand the weights back; "
            "use ddp"
        )
