"""What makes a run the run it is: every option that its mathematics depends on.

A checkpoint keeps these options. A resumed run must have the same ones, except those that are named in FREE,
and those that the user changes on purpose (`fit --ckpt_path last --change model.learning_rate`), which are
written down with the step.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from lightning_genesis.errors import ConfigurationError

FREE = (
    # where things lie and what is shown
    *("run", "checkpoint", "pictures", "config", "ckpt_path", "init_from", "change"),
    *("data.root", "data.raw", "data.num_workers", "data.on_device"),
    *("trainer.logger", "trainer.log_every_n_steps", "trainer.default_root_dir", "trainer.profiler"),
    *("trainer.enable_checkpointing", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
    *("trainer.enable_autolog_hparams", "trainer.model_registry"),
    # how long it goes on, and how often it is looked at
    *(
        "trainer.max_steps",
        "trainer.max_epochs",
        "trainer.max_time",
        "trainer.min_steps",
        "trainer.min_epochs",
    ),
    *("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps"),
    *("trainer.limit_val_batches", "trainer.limit_test_batches", "trainer.limit_predict_batches"),
    "trainer.fast_dev_run",
    # what a test does
    *("protocol", "importance_samples", "prior", "fid", "structure"),
    # what only decides whether and where it is computed; the number of ranks is compared
    *("rollback", "model.compile", "trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
    *("trainer.strategy", "trainer.benchmark", "trainer.deterministic", "trainer.detect_anomaly"),
    *("trainer.inference_mode", "trainer.barebones", "trainer.plugins", "trainer.use_distributed_sampler"),
)
"""Options, or groups of them, in which a resumed run may differ."""
NEVER = ("model", "model.optimizer", "data")
"""What cannot be changed in a run: its optimiser's moments, its weights or its images would be another's."""


class Change(NamedTuple):
    """An option that a run went on with in another value."""

    step: int
    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"step {self.step}: {self.name} {self.before} -> {self.after}"


def names_of(change: Sequence[str] | str | None) -> list[str]:
    """The names in `--change`, given with commas between them or as a list."""
    parts = change.split(",") if isinstance(change, str) else change or ()
    return [name.strip() for name in parts if name.strip()]


def check_optimizer_state(checkpoint: Mapping[str, Any], model: Any, path: str) -> None:
    """Refuses a checkpoint whose optimiser has lost its moments: training would start them anew unseen.

    Raises:
        ConfigurationError: if a run of one step or more has none.
    """
    states = checkpoint.get("optimizer_states") or [{}]
    has_moments = model.optimizer_name != "SGD" or model.hparams["optimizer_options"].get("momentum")
    if checkpoint.get("global_step", 0) > 0 and has_moments and not states[0].get("state"):
        raise ConfigurationError(
            f"{path}: the state of its optimiser is empty after {checkpoint['global_step']} steps, expected "
            f"the moments of {model.optimizer_name}; start anew from these weights with --init_from"
        )


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's options that count, flat and plain: `model` and `data` are class names."""
    found: dict[str, Any] = {}
    _flatten(config, "", found)
    return {name: value for name, value in found.items() if not _is_in(name, FREE)}


def _flatten(value: Any, name: str, found: dict[str, Any]) -> None:
    if isinstance(value, Mapping) and "class_path" in value:
        found[name] = str(value["class_path"]).rpartition(".")[2]
        value = value.get("init_args") or {}
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            _flatten(item, f"{name}.{key}" if name else str(key), found)
    elif not isinstance(value, Mapping):
        found[name] = _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _is_in(name: str, groups: Sequence[str]) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def compare(
    saved: Mapping[str, Any], now: Mapping[str, Any], allowed: Sequence[str], step: int, path: str
) -> list[Change]:
    """What a run goes on with in other values.

    Options that a checkpoint from before does not know are not compared.

    Args:
        saved: `options_of` the run at its checkpoint.
        now: `options_of` the run that resumes it.
        allowed: names that may differ, as given to `--change`; the last part alone will do.
        step: of the checkpoint.
        path: of the checkpoint, for messages.

    Raises:
        ConfigurationError: if something else differs, or a name is unknown or cannot be changed.
    """
    names = _resolve(allowed, {**saved, **now})
    changes = [
        Change(step, name, value, now.get(name))
        for name, value in saved.items()
        if not _same(value, now.get(name)) and (name in now or value is not None)
    ]
    for change in changes:
        if change.name in names:
            continue
        way = (
            "start anew from these weights with --init_from"
            if change.name in NEVER
            else f"to go on with the new value on purpose add --change {change.name}"
        )
        raise ConfigurationError(
            f"{path}: {change.name} was {change.before} in training and is {change.after} here; to resume "
            f"give the same value, {way}"
        )
    return changes


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, dict) and isinstance(after, dict):
        return all(_same(before.get(key), after.get(key)) for key in {*before, *after})
    # NaN is the same as NaN; True is not 1
    return repr(before) == repr(after) or (before == after and type(before) is not bool is not type(after))


def _resolve(allowed: Sequence[str], known: Mapping[str, Any]) -> set[str]:
    """The full names that `--change` allows."""
    names: set[str] = set()
    for given in allowed:
        found = [name for name in known if name == given or name.endswith(f".{given}")]
        found += [name for name in known if f".{given}." in f".{name}" and given not in NEVER]
        if not found:
            close = get_close_matches(given, [*known, *(name.rpartition(".")[2] for name in known)], n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigurationError(f"--change {given}: no option that a run is compared by{hint}")
        if given in NEVER or (len(found) == 1 and found[0] in NEVER):
            raise ConfigurationError(
                f"--change {given}: cannot be changed in a run; start anew from its weights with --init_from"
            )
        names.update(found)
    return names
